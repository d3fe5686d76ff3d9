#include "launch/cli/checkpoint_command.h"

#include <array>
#include <iostream>
#include <map>
#include <memory>

#include "launch/huggingface/convert_model.h"

namespace longhaul::launch {
namespace {

void add_dtype(CLI::App& app, std::optional<DType>& dtype, const char* help) {
  static const std::map<std::string, DType> kTypes{{"bf16", DType::kBF16}, {"f32", DType::kF32}};
  app.add_option_function<std::string>(
         "--dtype", [&dtype](const std::string& name) { dtype = kTypes.at(name); }, help)
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->type_name("bf16|f32");
}

Action add_import(CLI::App& app) {
  auto options = std::make_shared<huggingface::ImportOptions>();
  app.add_option("folder", options->folder,
                 "Hugging Face folder: config.json and *.safetensors of a llama, mistral, qwen2 or "
                 "qwen3 model")
      ->required()
      ->type_name("DIR");
  app.add_option("--output", options->output, "Run folder to make")->required()->type_name("RUN");
  add_dtype(app, options->dtype, "Of the stored weights; default: bf16 if all of them are");
  return [options] {
    std::cout << huggingface::import_model(*options) << std::endl;
    return 0;
  };
}

Action add_export(CLI::App& app) {
  auto options = std::make_shared<huggingface::ExportOptions>();
  app.add_option("run", options->run, "Run folder, or one of its checkpoints")
      ->required()
      ->type_name("RUN");
  app.add_option("folder", options->folder, "Hugging Face folder to make")
      ->required()
      ->type_name("DIR");
  add_dtype(app, options->dtype, "Of the weights; default: train.dtype of the run");
  app.add_option("--file-bytes", options->file_bytes, "Weights beyond this go to several files")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  return [options] {
    std::cout << huggingface::export_model(*options) << std::endl;
    return 0;
  };
}

}  // namespace

std::span<const Command> checkpoint_commands() {
  static constexpr std::array<Command, 2> kCommands = {
      Command{
          .name = "import", .help = "Make a run folder of a Hugging Face model", .add = add_import},
      Command{.name = "export",
              .help = "Make a Hugging Face folder of a trained model; adapters are merged",
              .add = add_export}};
  return kCommands;
}

}  // namespace longhaul::launch
