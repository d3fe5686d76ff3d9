#include "launch/data/chat.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

void append(const std::vector<int32_t>& from, std::vector<int32_t>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& name, const Tokenizer& tokenizer)
    : tokenizer_(tokenizer), name_(name) {
  if (name == "chatml") {
    opening_ = {control("<|im_start|>")};
    separator_ = "\n";
    closing_ = {control("<|im_end|>")};
    after_ = "\n";
  } else if (name == "llama3") {
    first_ = {control("<|begin_of_text|>")};
    opening_ = {control("<|start_header_id|>")};
    header_ = {control("<|end_header_id|>")};
    separator_ = "\n\n";
    closing_ = {control("<|eot_id|>")};
    trims_ = true;
  } else {
    fail(ErrorCode::kConfig,
         absl::StrCat("chat template '", name, "' is not known: there are chatml and llama3"));
  }
}

int32_t ChatTemplate::control(const std::string& spelling) const {
  const auto token = tokenizer_.added_token(spelling);
  if (!token) {
    fail(ErrorCode::kData, absl::StrCat("the chat template '", name_, "' wants a token ", spelling,
                                        ", which the tokenizer does not have: take the tokenizer "
                                        "of a model that was trained with this template"));
  }
  return *token;
}

void ChatTemplate::encode(const nlohmann::json& messages, const std::string& where,
                          MaskedTokens& out) const {
  if (!messages.is_array() || messages.empty()) {
    fail(ErrorCode::kData, absl::StrCat(where, " is no array of messages"));
  }
  const auto text = [&](std::string_view what, Before before = Before::kControl) {
    tokenizer_.encode(what, out.tokens, SpecialTokens::kAsText, before);
  };
  append(first_, out.tokens);
  out.mark(false);
  for (size_t i = 0; i < messages.size(); ++i) {
    const nlohmann::json& message = messages[i];
    const auto bad = [&](const std::string& why) {
      fail(ErrorCode::kData, absl::StrCat(where, "[", i, "] ", why));
    };
    if (!message.is_object()) bad("is no object");
    for (const auto& [field, value] : message.items()) {
      if (field != "role" && field != "content" && !value.is_null()) {
        bad(absl::StrCat("has the field '", field, "': only role and content are known"));
      }
    }
    const auto role = message.find("role"), content = message.find("content");
    if (role == message.end() || !role->is_string() ||
        (*role != "system" && *role != "user" && *role != "assistant")) {
      bad("has no role of system, user and assistant");
    }
    if (content == message.end() || !content->is_string()) bad("has no content that is a string");
    const auto& name = role->get_ref<const std::string&>();
    std::string_view said = content->get_ref<const std::string&>();
    if (trims_) said = trimmed(said);
    const bool learned = name == "assistant";

    append(opening_, out.tokens);
    if (!header_.empty()) {
      text(name);
      append(header_, out.tokens);
    }
    std::string before(separator_);
    if (header_.empty()) before.insert(0, name);
    if (learned) {
      // Apart, as it is when a model is asked to go on.
      text(before);
      out.mark(false);
      text(said, Before::kText);
    } else {
      text(before + std::string(said));
      out.mark(false);
    }
    append(closing_, out.tokens);
    out.mark(learned);
    text(after_);
    out.mark(false);
  }
}

}  // namespace longhaul::launch
