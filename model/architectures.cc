#include <array>

#include "absl/strings/str_cat.h"
#include "model/llama.h"
#include "model/model.h"

namespace longhaul::model {

namespace {

template <class M>
std::unique_ptr<Model> make(const ModelConfig& config, const ModelOptions& options,
                            parallel::ParameterStore& store) {
  return std::make_unique<M>(config, options, store);
}

constexpr std::array kArchitectures{
    Architecture{"llama", make<Llama>},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture& architecture(std::string_view name) {
  std::string known;
  for (const Architecture& row : kArchitectures) {
    if (row.name == name) return row;
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(row.name));
  }
  fail(ErrorCode::kConfig, absl::StrCat("model.architecture is \"", std::string(name),
                                        "\"; known architectures: ", known));
}

}  // namespace longhaul::model
