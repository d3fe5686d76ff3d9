// The files of a Hugging Face folder that come along with a model without being changed.
#pragma once

#include <string>

namespace longhaul::launch::huggingface {

inline constexpr char kCarriedFolder[] = "huggingface";  // in a run folder

// Copies those of tokenizer, chat template and generation that are there, over what is there
// already. Throws Error(kCheckpoint).
void copy_carried_files(const std::string& from, const std::string& to);

// All that one run folder carries, config.json too, to another that starts from its weights.
// Nothing if it carries nothing.
void carry_on(const std::string& from_run, const std::string& to_run);

// The content of a file of at most 64 MiB, or "" if there is none.
std::string text_of(const std::string& path);
void write_text(const std::string& path, const std::string& text);

}  // namespace longhaul::launch::huggingface
