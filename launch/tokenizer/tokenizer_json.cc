#include "launch/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/bpe_tokenizer.h"
#include "launch/tokenizer/byte_alphabet.h"
#include "launch/tokenizer/json_fields.h"
#include "launch/tokenizer/json_stages.h"

namespace longhaul::launch {
namespace {

using nlohmann::json;
using Vocabulary = absl::flat_hash_map<std::string, int32_t>;

constexpr int64_t kMostTokens = int64_t{1} << 24;

class Loader {
 public:
  Loader(const std::string& path, json file) : path_(path), file_(std::move(file)) {
    parts_.name = path;
    parts_.byte_tokens.fill(-1);
  }

  std::unique_ptr<const Tokenizer> load() {
    JsonFields top(file_, path_, "");
    if (const std::string version = top.text("version"); version != "1.0") {
      top.refuse("version", absl::StrCat("is ", version, "; only 1.0 is known"));
    }
    top.must_be_off("truncation");
    top.must_be_off("padding");
    StageReader stages{path_, parts_};
    stages.normalizer(optional(top, "normalizer"), "normalizer");
    stages.pre_tokenizer(optional(top, "pre_tokenizer"), "pre_tokenizer");
    JsonFields model = top.object("model");
    vocabulary(model);
    added_tokens(top);
    if (stages.metaspace &&
        std::any_of(parts_.added.begin(), parts_.added.end(),
                    [](const auto& t) { return t.normalized && (t.lstrip || t.rstrip); })) {
      top.refuse("added_tokens",
                 "has a normalized token with lstrip or rstrip beside Metaspace: "
                 "not supported");
    }
    symbols(model, stages.byte_level);
    merges(model);
    model.done();
    stages.post_processor(optional(top, "post_processor"), "post_processor");
    stages.decoder(optional(top, "decoder"), "decoder");
    top.done();
    ends_of_text();
    return std::make_unique<BpeTokenizer>(std::move(parts_));
  }

 private:
  static const json& optional(JsonFields& fields, const std::string& name) {
    static const json kNull;
    const json* value = fields.find(name);
    return value == nullptr ? kNull : *value;
  }

  int32_t checked_id(const JsonFields& fields, const std::string& name, const json& id) {
    if (!id.is_number_integer() || id < 0 || id >= kMostTokens) {
      fields.refuse("", absl::StrCat("gives the token \"", name, "\" the id ", id.dump(),
                                     ", which is not in 0..", kMostTokens - 1));
    }
    return id.get<int32_t>();
  }

  // parts_.bytes[id] is set; false if it was before.
  bool take_id(int32_t id, const std::string& bytes) {
    const auto at = static_cast<size_t>(id);
    if (at >= parts_.bytes.size()) {
      parts_.bytes.resize(at + 1);
      taken_.resize(at + 1);
    }
    if (taken_[at]) return false;
    taken_[at] = true;
    parts_.bytes[at] = bytes;
    return true;
  }

  void vocabulary(JsonFields& model) {
    if (const std::string type = model.text("type", "BPE"); type != "BPE") {
      model.refuse("type", absl::StrCat("is ", type, "; only BPE is supported"));
    }
    const json& vocab = model.require("vocab");
    if (!vocab.is_object() || vocab.empty())
      model.refuse("vocab", "is no object of tokens and ids");
    ids_.reserve(vocab.size());
    for (const auto& [name, id] : vocab.items()) {
      const int32_t number = checked_id(model, name, id);
      if (!take_id(number, name)) {
        model.refuse("vocab", absl::StrCat("gives the id ", number, " to \"", name, "\" and to \"",
                                           parts_.bytes[static_cast<size_t>(number)], "\""));
      }
      ids_.emplace(name, number);
    }
  }

  void added_tokens(JsonFields& top) {
    const json* tokens = top.find("added_tokens");
    if (tokens == nullptr) return;
    top.array("added_tokens");
    for (size_t i = 0; i < tokens->size(); ++i) {
      JsonFields fields((*tokens)[i], path_, absl::StrCat("added_tokens[", i, "]"));
      AddedToken token;
      token.content = fields.text("content");
      token.id = checked_id(fields, token.content, fields.require("id"));
      token.single_word = fields.flag("single_word", false);
      token.lstrip = fields.flag("lstrip", false);
      token.rstrip = fields.flag("rstrip", false);
      token.normalized = fields.flag("normalized", false);
      token.special = fields.flag("special", false);
      fields.done();
      const auto known = ids_.find(token.content);
      if (known != ids_.end() ? known->second != token.id : !take_id(token.id, token.content)) {
        fields.refuse("id", absl::StrCat("is ", token.id, " for \"", token.content,
                                         "\", but model.vocab or another added token has it for ",
                                         known != ids_.end() ? "that spelling otherwise"
                                                             : "another spelling"));
      }
      parts_.added.push_back(std::move(token));
    }
    const auto tokens_in_all = static_cast<int64_t>(ids_.size() + parts_.added.size());
    if (static_cast<int64_t>(parts_.bytes.size()) > 4 * tokens_in_all + 65536) {
      top.refuse("added_tokens",
                 absl::StrCat("and model.vocab have ids up to ", parts_.bytes.size() - 1, " for ",
                              tokens_in_all, " tokens: the file is damaged"));
    }
  }

  // What words begin with, and what tokens are in bytes.
  void symbols(JsonFields& model, bool byte_level) {
    parts_.characters = model.flag("byte_fallback", false);
    if (parts_.characters == byte_level) {
      model.refuse("byte_fallback",
                   byte_level ? "is true beside a ByteLevel pre-tokenizer: not supported"
                              : "is not true and there is no ByteLevel pre-tokenizer: text with "
                                "unknown characters would be lost, which is not supported");
    }
    for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      model.must_be_off(name);
    }
    parts_.whole_words = model.flag("ignore_merges", false);
    model.pass_over("unk_token");  // every byte is known, or encoding says which is not
    model.pass_over("fuse_unk");
    if (parts_.characters) {
      for (int byte = 0; byte < 256; ++byte) {
        const std::string name = absl::StrFormat("<0x%02X>", byte);
        const auto id = ids_.find(name);
        if (id == ids_.end()) model.refuse("vocab", absl::StrCat("lacks ", name));
        parts_.byte_tokens[static_cast<size_t>(byte)] = id->second;
        parts_.bytes[static_cast<size_t>(id->second)] = std::string(1, static_cast<char>(byte));
      }
      for (const auto& [name, id] : ids_) {
        if (!name.empty() && utf8_character(name, 0).bytes == name.size()) {
          parts_.character_tokens.emplace(name, id);
        }
      }
      return;
    }
    for (const auto& [name, id] : ids_) {
      const auto bytes = bytes_of(name);
      if (!bytes) continue;  // no text's token: control, or unused
      parts_.bytes[static_cast<size_t>(id)] = *bytes;
      if (bytes->size() == 1) parts_.byte_tokens[static_cast<uint8_t>((*bytes)[0])] = id;
    }
    for (const AddedToken& token : parts_.added) {
      parts_.bytes[static_cast<size_t>(token.id)] = token.content;
    }
  }

  void merges(JsonFields& model) {
    const json& list = model.array("merges");
    parts_.merges.reserve(list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      std::string left, right;
      if (list[i].is_string()) {
        const std::string& pair = list[i].get_ref<const std::string&>();
        const size_t space = pair.find(' ');
        if (space != std::string::npos && pair.find(' ', space + 1) == std::string::npos) {
          left = pair.substr(0, space);
          right = pair.substr(space + 1);
        }
      } else if (list[i].is_array() && list[i].size() == 2 && list[i][0].is_string() &&
                 list[i][1].is_string()) {
        left = list[i][0].get<std::string>();
        right = list[i][1].get<std::string>();
      }
      const auto a = ids_.find(left), b = ids_.find(right), merged = ids_.find(left + right);
      if (left.empty() || right.empty() || a == ids_.end() || b == ids_.end() ||
          merged == ids_.end()) {
        model.refuse(absl::StrCat("merges[", i, "]"),
                     absl::StrCat("is ", list[i].dump(),
                                  ": not two tokens whose joint spelling is "
                                  "a token of model.vocab, too"));
      }
      parts_.merges.push_back({a->second, b->second, static_cast<int32_t>(i), merged->second});
    }
  }

  std::optional<int32_t> added(const std::string& content) const {
    const auto found = std::find_if(parts_.added.begin(), parts_.added.end(),
                                    [&](const AddedToken& t) { return t.content == content; });
    if (found == parts_.added.end()) return std::nullopt;
    return found->id;
  }

  void ends_of_text() {
    const auto beside = std::filesystem::path(path_).parent_path() / "tokenizer_config.json";
    if (std::filesystem::exists(beside)) {
      const json config = read_json_file(beside.string());
      JsonFields fields(config, beside.string(), "");  // what else it says is for other programs
      parts_.beginning_of_text = named(fields, "bos_token");
      parts_.end_of_text = named(fields, "eos_token");
      return;
    }
    const auto first_of = [&](std::initializer_list<const char*> names) -> std::optional<int32_t> {
      for (const char* name : names) {
        if (const auto id = added(name)) return id;
      }
      return std::nullopt;
    };
    parts_.beginning_of_text = first_of({"<|begin_of_text|>", "<s>", "<bos>"});
    parts_.end_of_text = first_of({"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"});
  }

  // A token's spelling, or an object with it.
  std::optional<int32_t> named(JsonFields& config, const std::string& name) const {
    const json* value = config.find(name);
    if (value == nullptr) return std::nullopt;
    const std::string content =
        value->is_object() ? config.object(name).text("content") : config.text(name);
    if (const auto id = added(content)) return id;
    const auto known = ids_.find(content);
    if (known == ids_.end()) {
      config.refuse(name, absl::StrCat("is \"", content, "\", which '", path_, "' does not have"));
    }
    return known->second;
  }

  std::string path_;
  json file_;
  BpeParts parts_;
  Vocabulary ids_;  // of model.vocab, by spelling
  std::vector<bool> taken_;
};

}  // namespace

std::unique_ptr<const Tokenizer> load_tokenizer_json(const std::string& path) {
  return Loader(path, read_json_file(path)).load();
}

std::unique_ptr<const Tokenizer> parse_tokenizer_json(std::string_view text,
                                                      const std::string& path) {
  return Loader(path, parse_json(text, path)).load();
}

}  // namespace longhaul::launch
