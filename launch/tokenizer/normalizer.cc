#include "launch/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/core/error.h"
#include "launch/tokenizer/utf8.h"

namespace longhaul::launch {
namespace {

// Below U+0300 every character is its own NFC, and none composes with what stands before it.
constexpr uint8_t kFirstToCheck = 0xCC;

bool needs_check(char c) { return static_cast<uint8_t>(c) >= kFirstToCheck; }
bool ascii(char c) { return static_cast<uint8_t>(c) < 0x80; }

void append_form(std::string_view text, Normalizer::Form form, std::string& out) {
  unsigned options = UTF8PROC_STABLE;
  const bool compose = form == Normalizer::Form::kNfc || form == Normalizer::Form::kNfkc;
  options |= compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == Normalizer::Form::kNfkc || form == Normalizer::Form::kNfkd) {
    options |= UTF8PROC_COMPAT;
  }
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t bytes = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
      static_cast<utf8proc_ssize_t>(text.size()), &mapped, static_cast<utf8proc_option_t>(options));
  if (bytes == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  LONGHAUL_CHECK(bytes >= 0, utf8proc_errmsg(bytes));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(mapped, std::free);
  out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(bytes));
}

// Stretches that end before an ASCII character, which composes with nothing before it.
void append_nfc(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const auto* const first = std::find_if(text.begin(), text.end(), needs_check);
    auto plain = static_cast<size_t>(first - text.begin());
    // What it may compose with.
    if (plain > 0 && plain < text.size()) plain -= utf8_character_before(text, plain).bytes;
    out += text.substr(0, plain);
    if (first == text.end()) return;
    const auto end = static_cast<size_t>(std::find_if(first, text.end(), ascii) - text.begin());
    append_form(text.substr(plain, end - plain), Normalizer::Form::kNfc, out);
    text.remove_prefix(end);
  }
}

void append_replaced(std::string_view text, std::string_view what, std::string_view with,
                     std::string& out) {
  while (true) {
    const size_t at = text.find(what);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return;
    out += with;
    text.remove_prefix(at + what.size());
  }
}

}  // namespace

bool Normalizer::by_parts() const {
  return std::all_of(steps_.begin(), steps_.end(),
                     [](const Step& step) { return step.kind == Kind::kForm; });
}

std::string_view Normalizer::apply(std::string_view text, std::string (&buffers)[2],
                                   bool goes_on) const {
  int next = 0;
  for (const Step& step : steps_) {
    if (text.empty()) break;
    if (goes_on && step.kind == Kind::kPrepend) continue;
    if (step.kind == Kind::kForm && step.form == Form::kNfc &&
        std::none_of(text.begin(), text.end(), needs_check)) {
      continue;
    }
    std::string& out = buffers[next];
    out.clear();
    if (step.kind == Kind::kPrepend) {
      out += step.with;
      out += text;
    } else if (step.kind == Kind::kReplace) {
      append_replaced(text, step.what, step.with, out);
    } else if (step.form == Form::kNfc) {
      append_nfc(text, out);
    } else {
      append_form(text, step.form, out);
    }
    text = out;
    next = 1 - next;
  }
  return text;
}

}  // namespace longhaul::launch
