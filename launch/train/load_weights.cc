#include "launch/train/load_weights.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoint/reader.h"
#include "kernels/pointwise.h"

namespace longhaul::launch {

namespace {

using Description = std::map<std::string, std::string>;

constexpr std::array<const char*, 4> kMayDiffer = {"model.rope_theta", "model.rope_scaling",
                                                   "model.attention.sliding_window", "train.dtype"};

bool is_adapter(const std::string& name) { return absl::StrContains(name, ".lora_"); }

bool has_adapters(const Description& model) { return model.contains("lora.rank"); }

// What load() is to compare with the saved model: the running one, but for what may differ.
Description compared(const Description& running, const Description& saved) {
  Description result = running;
  for (const std::string name : kMayDiffer) {
    result.erase(name);
    if (const auto found = saved.find(name); found != saved.end()) result.insert(*found);
  }
  if (!has_adapters(saved)) {
    std::erase_if(result, [](const auto& field) { return absl::StartsWith(field.first, "lora."); });
  }
  return result;
}

}  // namespace

void load_weights(dist::Group& group, const Context& ctx, const std::string& checkpoint,
                  const model::ModelConfig& model, DType dtype,
                  std::span<const WeightSlice> slices) {
  checkpoint::Info info;
  checkpoint::State state;
  std::vector<std::pair<Tensor, TensorView>> converted;  // as saved, and where to
  group.agree(attempt([&] {
                info = checkpoint::read_info(checkpoint);
                const auto tensors = checkpoint::saved_tensors(checkpoint);
                for (const WeightSlice& slice : slices) {
                  const parallel::ParameterSpec& spec = slice.entry->spec;
                  if (is_adapter(spec.name) && !has_adapters(info.model)) continue;
                  TensorView to = slice.values;
                  // What is missing is for load() to say.
                  const auto found = tensors.find(spec.name);
                  const DType saved = found == tensors.end() ? to.dtype() : found->second.dtype;
                  if (saved != to.dtype()) {
                    converted.emplace_back(Tensor(saved, to.shape(), ctx.device()), to);
                    to = converted.back().first.view();
                  }
                  state.push_back({.name = spec.name,
                                   .shape = spec.shape,
                                   .begin = slice.begin,
                                   .end = slice.end,
                                   .data = to});
                }
              }),
              "reading a checkpoint");
  wait_until_idle(ctx.stream);
  checkpoint::load(group, checkpoint, compared(model.describe(dtype), info.model), state);
  for (const auto& [from, to] : converted) kernels::copy(ctx, from, to);
}

}  // namespace longhaul::launch
