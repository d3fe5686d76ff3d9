#include "model/config.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::model {

int64_t ModelConfig::parameters() const {
  const int64_t sinks = attention.sinks ? heads : 0;
  const int64_t projections = width * head_dim * (2 * heads + 2 * kv_heads);
  const int64_t mlp = 3 * width * mlp_width;
  const int64_t embeddings = vocabulary * width * (tied_embeddings ? 1 : 2);
  return embeddings + layers * (projections + sinks + mlp + 2 * width) + width;
}

void ModelConfig::validate() const {
  const auto at_least_one = [](const char* field, int64_t value) {
    if (value < 1) {
      fail(ErrorCode::kConfig, absl::StrCat("model.", field, " is ", value,
                                            "; it must be at least 1: set it or choose a "
                                            "model.preset"));
    }
  };
  at_least_one("vocabulary", vocabulary);
  at_least_one("layers", layers);
  at_least_one("width", width);
  at_least_one("heads", heads);
  at_least_one("kv_heads", kv_heads);
  at_least_one("head_dim", head_dim);
  at_least_one("mlp_width", mlp_width);
  if (heads % kv_heads != 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.heads is ", heads, " and model.kv_heads is ", kv_heads,
                      "; every kv head serves the same number of query heads, so set kv_heads to a "
                      "divisor of ",
                      heads));
  }
  if (!attention.alibi && head_dim % 2 != 0) {
    fail(ErrorCode::kConfig, absl::StrCat("model.head_dim is ", head_dim,
                                          "; rotary embedding turns pairs, so set it to ",
                                          head_dim + 1, " or another even number"));
  }
  if (vocabulary > INT32_MAX) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.vocabulary is ", vocabulary, "; tokens are 32-bit, so at most ",
                      INT32_MAX, " are possible"));
  }
  if (!(norm_eps > 0)) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.norm_eps is ", norm_eps, "; it must be greater than 0, e.g. 1e-5"));
  }
  if (!attention.alibi && !(rope.theta > 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("model.rope_theta is ", rope.theta,
                                          "; it must be greater than 0, e.g. 10000"));
  }
  if (attention.alibi && attention.prefix_length > 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.attention.alibi is true and model.attention.prefix_length is ",
                      attention.prefix_length,
                      "; ALiBi's bias is one of distance into the past, and queries of a prefix "
                      "also see later keys, so set one of the two"));
  }
}

std::map<std::string, std::string> ModelConfig::describe(DType dtype) const {
  std::map<std::string, std::string> fields{
      {"model.architecture", architecture},
      {"model.vocabulary", absl::StrCat(vocabulary)},
      {"model.layers", absl::StrCat(layers)},
      {"model.width", absl::StrCat(width)},
      {"model.heads", absl::StrCat(heads)},
      {"model.kv_heads", absl::StrCat(kv_heads)},
      {"model.head_dim", absl::StrCat(head_dim)},
      {"model.mlp_width", absl::StrCat(mlp_width)},
      {"model.norm_eps", absl::StrCat(norm_eps)},
      {"model.rope_theta", absl::StrCat(rope.theta)},
      {"model.tied_embeddings", tied_embeddings ? "true" : "false"},
      {"train.dtype", std::string(name(dtype))},
  };
  if (rope.scaling) {
    const kernels::RopeScaling& s = *rope.scaling;
    fields["model.rope_scaling"] =
        absl::StrCat("factor ", s.factor, ", low ", s.low_frequency_factor, ", high ",
                     s.high_frequency_factor, ", original length ", s.original_length);
  } else {
    fields["model.rope_scaling"] = "none";
  }
  if (attention.alibi) {
    fields["model.rope_theta"] = fields["model.rope_scaling"] = "none";
    fields["model.attention.alibi"] = "true";
  }
  if (attention.sliding_window > 0) {
    fields["model.attention.sliding_window"] = absl::StrCat(attention.sliding_window);
  }
  if (attention.prefix_length > 0) {
    fields["model.attention.prefix_length"] = absl::StrCat(attention.prefix_length);
  }
  if (attention.soft_cap > 0) fields["model.attention.soft_cap"] = absl::StrCat(attention.soft_cap);
  if (attention.sinks) fields["model.attention.sinks"] = "true";
  return fields;
}

}  // namespace longhaul::model
