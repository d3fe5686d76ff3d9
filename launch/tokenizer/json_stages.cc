#include "launch/tokenizer/json_stages.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/tokenizer/json_fields.h"
#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {
namespace {

using nlohmann::json;

// Calls read(value, field) for the elements of an array field, then checks the object.
template <class Read>
void each(JsonFields& fields, const std::string& name, const std::string& field, const Read& read) {
  const json& array = fields.array(name);
  fields.done();
  for (size_t i = 0; i < array.size(); ++i) {
    // Sequences of sequences are no file's; they could nest without end.
    const bool nested = array[i].is_object() && array[i].value("type", json()) == "Sequence";
    if (nested) fields.refuse(name, "has a Sequence in a Sequence, which is not supported");
    read(array[i], absl::StrCat(field, ".", name, "[", i, "]"));
  }
}

[[noreturn]] void refuse_type(const JsonFields& fields, const std::string& type,
                              const std::string& known) {
  fields.refuse("type", absl::StrCat("is ", type, ", which is not supported; supported: ", known));
}

// {"String": s} or {"Regex": r}.
struct WrittenPattern {
  bool regex = false;
  std::string text;
};
WrittenPattern written_pattern(JsonFields& fields) {
  JsonFields pattern = fields.object("pattern");
  WrittenPattern written;
  written.regex = pattern.find("Regex") != nullptr;
  written.text = pattern.text(written.regex ? "Regex" : "String");
  pattern.done();
  if (written.text.empty()) fields.refuse("pattern", "is empty");
  return written;
}

std::string as_expression(const WrittenPattern& pattern) {
  if (pattern.regex) return pattern.text;
  std::string expression;
  for (const char c : pattern.text) {
    const auto byte = static_cast<uint8_t>(c);
    const bool sign = byte > ' ' && byte < 0x7F && std::isalnum(byte) == 0;
    if (sign) expression += '\\';
    expression += c;
  }
  return expression;
}

}  // namespace

void StageReader::normalizer(const json& value, const std::string& field) {
  if (value.is_null()) return;
  JsonFields fields(value, file, field);
  const std::string type = fields.text("type");
  using Form = Normalizer::Form;
  if (type == "Sequence") {
    return each(fields, "normalizers", field,
                [&](const json& v, const std::string& f) { normalizer(v, f); });
  }
  if (type == "NFC") {
    parts.normalizer.add_form(Form::kNfc);
  } else if (type == "NFD") {
    parts.normalizer.add_form(Form::kNfd);
  } else if (type == "NFKC") {
    parts.normalizer.add_form(Form::kNfkc);
  } else if (type == "NFKD") {
    parts.normalizer.add_form(Form::kNfkd);
  } else if (type == "Prepend") {
    parts.normalizer.add_prepend(fields.text("prepend"));
  } else if (type == "Replace") {
    const WrittenPattern pattern = written_pattern(fields);
    if (pattern.regex) fields.refuse("pattern", "is a Regex; only a String can be replaced");
    parts.normalizer.add_replace(pattern.text, fields.text("content"));
  } else {
    refuse_type(fields, type, "NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence");
  }
  fields.done();
}

void StageReader::pre_tokenizer(const json& value, const std::string& field) {
  if (value.is_null()) return;
  JsonFields fields(value, file, field);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    return each(fields, "pretokenizers", field,
                [&](const json& v, const std::string& f) { pre_tokenizer(v, f); });
  }
  if (byte_level || metaspace) {
    fields.refuse("type",
                  absl::StrCat("is ", type, " after ", byte_level ? "ByteLevel" : "Metaspace",
                               ", which has to be the last of a Sequence"));
  }
  if (type == "ByteLevel") {
    if (fields.flag("add_prefix_space", true)) {
      if (!parts.pre_tokenizer.empty()) {
        fields.refuse("add_prefix_space", "is true behind other pre-tokenizers: not supported");
      }
      parts.prefix.assign(1, ' ');
    }
    fields.pass_over("trim_offsets");
    if (fields.flag("use_regex", true)) {
      parts.pre_tokenizer.add_split(known_pattern("gpt2"), SplitBehavior::kIsolated, file);
    }
    byte_level = true;
  } else if (type == "Split") {
    return split(value, field);
  } else if (type == "Digits") {
    const bool individual = fields.flag("individual_digits", false);
    parts.pre_tokenizer.add_split(
        "\\p{N}", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
        fields.where());
  } else if (type == "Metaspace") {
    return read_metaspace(value, field);
  } else {
    refuse_type(fields, type, "ByteLevel, Split, Digits, Metaspace, Sequence");
  }
  fields.done();
}

void StageReader::split(const json& value, const std::string& field) {
  JsonFields fields(value, file, field);
  fields.pass_over("type");
  const WrittenPattern pattern = written_pattern(fields);
  const std::string behavior = fields.text("behavior");
  const bool invert = fields.flag("invert", false);
  fields.done();
  const auto add = [&](SplitBehavior split_behavior) {
    if (invert) fields.refuse("invert", absl::StrCat("is true with ", behavior, ": not supported"));
    parts.pre_tokenizer.add_split(as_expression(pattern), split_behavior, fields.where("pattern"));
  };
  if (behavior == "Isolated") return add(SplitBehavior::kIsolated);
  if (behavior == "Contiguous") return add(SplitBehavior::kContiguous);
  if (behavior == "MergedWithPrevious") return add(SplitBehavior::kMergedWithPrevious);
  if (behavior == "MergedWithNext") return add(SplitBehavior::kMergedWithNext);
  // Matches are the pieces and the rest is removed; of these patterns there is no rest.
  if (behavior == "Removed" && invert && pattern.regex && is_known_pattern(pattern.text)) {
    parts.pre_tokenizer.add_split(pattern.text, SplitBehavior::kIsolated, fields.where("pattern"));
    return;
  }
  fields.refuse("behavior",
                absl::StrCat("is ", behavior,
                             ", which is not supported: text would be lost; supported: Isolated, "
                             "Contiguous, MergedWithPrevious, MergedWithNext, and Removed with "
                             "invert and a pattern that matches everything (",
                             known_pattern_names(), ")"));
}

void StageReader::read_metaspace(const json& value, const std::string& field) {
  JsonFields fields(value, file, field);
  fields.pass_over("type");
  fields.pass_over("str_rep");  // the same as `replacement`, in older files
  const std::string symbol = fields.text("replacement");
  if (utf8_character(symbol, 0).bytes != symbol.size() || symbol.empty()) {
    fields.refuse("replacement", "is not one character");
  }
  if (!parts.pre_tokenizer.empty()) {
    fields.refuse("type", "is Metaspace behind other pre-tokenizers: not supported");
  }
  const bool old_prefix = fields.flag("add_prefix_space", true);
  const std::string scheme = fields.text("prepend_scheme", old_prefix ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    fields.refuse("prepend_scheme", absl::StrCat("is ", scheme, ", not always, first or never"));
  }
  parts.normalizer.add_replace(" ", symbol);
  if (scheme != "never") parts.prefix = symbol;
  parts.prefix_at_beginning_only = scheme == "first";
  if (fields.flag("split", true)) {
    parts.pre_tokenizer.add_split(as_expression({false, symbol}), SplitBehavior::kMergedWithNext,
                                  fields.where());
  }
  metaspace = true;
  fields.done();
}

void StageReader::post_processor(const json& value, const std::string& field) {
  if (value.is_null()) return;
  JsonFields fields(value, file, field);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    return each(fields, "processors", field,
                [&](const json& v, const std::string& f) { post_processor(v, f); });
  }
  if (type == "TemplateProcessing") return template_processing(value, field);
  if (type != "ByteLevel") refuse_type(fields, type, "ByteLevel, TemplateProcessing, Sequence");
  // It trims offsets of tokens within the text, which nobody asks for here.
  for (const char* name : {"add_prefix_space", "trim_offsets", "use_regex"}) fields.pass_over(name);
  fields.done();
}

void StageReader::template_processing(const json& value, const std::string& field) {
  JsonFields fields(value, file, field);
  fields.pass_over("type");
  fields.pass_over("pair");
  JsonFields tokens = fields.object("special_tokens");
  bool text_seen = false;
  const json& single = fields.array("single");
  for (size_t i = 0; i < single.size(); ++i) {
    JsonFields item(single[i], file, absl::StrCat(field, ".single[", i, "]"));
    if (item.find("Sequence") != nullptr) {
      if (text_seen) item.refuse("Sequence", "is the second one of a single text");
      text_seen = true;
    } else {
      JsonFields token = item.object("SpecialToken");
      token.pass_over("type_id");
      const std::string name = token.text("id");
      token.done();
      const json& ids = tokens.object(name).array("ids");
      for (const json& id : ids) {
        if (!id.is_number_integer() || id < 0 || id >= parts.bytes.size()) {
          tokens.refuse(name, "has an id that is no token");
        }
        (text_seen ? parts.after_text : parts.before_text).push_back(id.get<int32_t>());
      }
    }
    item.done();
  }
  if (!text_seen) fields.refuse("single", "does not have the text (Sequence)");
  fields.done();
}

void StageReader::decoder(const json& value, const std::string& field) {
  if (value.is_null()) return;
  JsonFields fields(value, file, field);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    return each(fields, "decoders", field,
                [&](const json& v, const std::string& f) { decoder(v, f); });
  }
  if (byte_level) {
    if (type != "ByteLevel") refuse_type(fields, type, "ByteLevel, as the pre-tokenizer is");
    for (const char* name : {"add_prefix_space", "trim_offsets", "use_regex"}) {
      fields.pass_over(name);
    }
  } else if (type == "Replace") {
    const WrittenPattern pattern = written_pattern(fields);
    if (pattern.regex || fields.text("content") != " ") {
      fields.refuse("content", "is supported only as a space in place of a String");
    }
    parts.space_symbol = pattern.text;
  } else if (type == "Strip") {
    if (fields.text("content") != " " || fields.require("stop") != 0 ||
        (fields.require("start") != 1 && fields.require("start") != 0)) {
      fields.refuse("content", "is supported only as one space at the start");
    }
    parts.strip_first_space = fields.require("start") == 1;
  } else if (type == "Metaspace") {
    parts.space_symbol = fields.text("replacement");
    parts.strip_first_space =
        fields.text("prepend_scheme", fields.flag("add_prefix_space", true) ? "always" : "never") !=
        "never";
    fields.pass_over("split");
    fields.pass_over("str_rep");
  } else if (type != "ByteFallback" && type != "Fuse") {
    refuse_type(fields, type, "Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence");
  }
  fields.done();
}

}  // namespace longhaul::launch
