#include "launch/cli/data_command.h"

#include <array>
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "launch/data/inspect.h"
#include "launch/data/llmc.h"
#include "launch/data/prepare.h"
#include "launch/data/synthetic.h"

namespace longhaul::launch {
namespace {

Action add_prepare(CLI::App& app) {
  auto options = std::make_shared<PrepareOptions>();
  app.add_option(
         "inputs", options->inputs,
         "Files and folders: *.jsonl has a document a row, others are text; .gz and .zst are "
         "unpacked")
      ->required()
      ->type_name("INPUT ...");
  app.add_option("--output", options->output, "Prefix of the .bin and .idx files to write")
      ->required()
      ->type_name("PREFIX");
  app.add_option("--split-on", options->split_on,
                 "A line equal to this ends a document of a text file; otherwise a file is one")
      ->type_name("LINE");
  app.add_option("--tokenizer", options->tokenizer,
                 "A tokenizer.json, a folder with one, a .tiktoken file, or bytes: a token a byte")
      ->capture_default_str()
      ->type_name("FILE");
  app.add_option(
         "--pattern", options->pattern,
         "Of a .tiktoken file whose name does not say it: gpt2, cl100k, o200k, qwen2, llama3")
      ->type_name("NAME");
  app.add_option("--field", options->field,
                 "The field of a JSONL row that is the document [text; with --chat: messages]")
      ->type_name("NAME");
  app.add_option("--prompt-field", options->prompt_field,
                 "The field of a JSONL row that comes before it and is not learned")
      ->type_name("NAME");
  app.add_option(
         "--chat", options->chat,
         "JSONL rows are conversations, of which the assistant's part is learned: chatml or "
         "llama3")
      ->type_name("TEMPLATE");
  app.add_flag(
      "--special-as-text", options->special_as_text,
      "Special tokens that a document spells out are text: for texts that are not trusted");
  app.add_flag("--bare", options->bare,
               "Documents get no tokens of the beginning and the end of a text");
  app.add_option("--threads", options->threads, "Threads that tokenize; 0: one for each core")
      ->capture_default_str()
      ->type_name("N");
  return [options] {
    std::cout << describe(prepare(*options), *options) << std::endl;
    return 0;
  };
}

Action add_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  app.add_option("prefix", options->prefix, "Prefix of the .bin and .idx files")
      ->required()
      ->type_name("PREFIX");
  app.add_option("--document", options->document, "The document whose beginning is shown")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--tokenizer", options->tokenizer, "Shows it as text, as data prepare's")
      ->type_name("FILE");
  app.add_option("--pattern", options->pattern, "As data prepare's")->type_name("NAME");
  app.add_option("--tokens", options->shown_tokens, "How much of it is shown")
      ->capture_default_str()
      ->type_name("N");
  return [options] {
    std::cout << describe(inspect(*options)) << std::flush;
    return 0;
  };
}

Action add_import(CLI::App& app) {
  auto options = std::make_shared<ImportOptions>();
  app.add_option("inputs", options->inputs, "Token files of llm.c (*.bin), in this order")
      ->required()
      ->type_name("FILE ...");
  app.add_option("--output", options->output, "Prefix of the .bin and .idx files to write")
      ->required()
      ->type_name("PREFIX");
  app.add_option("--document-token", options->document_token,
                 "The token that begins a document, -1: none [50256; Llama 3: 128000]")
      ->type_name("N");
  return [options] {
    const ImportReport report = import_llmc(*options);
    std::cout << absl::StrCat(options->output, ": ", report.tokens, " tokens (", report.dtype,
                              ") in ", report.documents, " documents from ", report.files,
                              " files\n")
              << std::flush;
    return 0;
  };
}

Action add_synthesize(CLI::App& app) {
  auto options = std::make_shared<CopyTaskOptions>();
  app.add_option("--output", options->output, "Prefix of the .bin and .idx files to write")
      ->required()
      ->type_name("PREFIX");
  app.add_option("--documents", options->documents, "Documents to write")
      ->required()
      ->type_name("N");
  app.add_option("--tokens", options->tokens, "Tokens of a document")->required()->type_name("N");
  app.add_option("--vocabulary", options->vocabulary, "Tokens are 0 to this minus 1")
      ->required()
      ->type_name("N");
  app.add_option("--seed", options->seed, "Of the random tokens")
      ->capture_default_str()
      ->type_name("N");
  return [options] {
    write_copy_task(*options);
    std::cout << absl::StrCat(options->output, ".bin and .idx: ", options->documents,
                              " documents of ", options->tokens, " tokens\n")
              << std::flush;
    return 0;
  };
}

}  // namespace

std::span<const Command> data_commands() {
  static constexpr std::array<Command, 4> kCommands = {
      Command{.name = "prepare",
              .help = "Text and JSONL to token files; documents are kept",
              .add = add_prepare},
      Command{.name = "import", .help = "Token files of llm.c to ours", .add = add_import},
      Command{.name = "inspect", .help = "What is in token files", .add = add_inspect},
      Command{.name = "synthesize",
              .help = "The copy task: documents whose second half repeats the first",
              .add = add_synthesize}};
  return kCommands;
}

}  // namespace longhaul::launch
