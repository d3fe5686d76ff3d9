#include "launch/tokenizer/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

constexpr size_t kLongestExpression = 20000;
constexpr uint32_t kMatchLimit = 100'000'000;
constexpr size_t kJitStack = size_t{4} << 20;

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

template <class T>
T* allocated(T* pointer) {
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}

}  // namespace

struct MatchSpace::Parts {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
};

MatchSpace::MatchSpace() : parts_(std::make_unique<Parts>()) {
  parts_->data = allocated(pcre2_match_data_create(1, nullptr));
  parts_->context = allocated(pcre2_match_context_create(nullptr));
  parts_->stack = allocated(pcre2_jit_stack_create(size_t{64} << 10, kJitStack, nullptr));
  pcre2_set_match_limit(parts_->context, kMatchLimit);
  pcre2_jit_stack_assign(parts_->context, nullptr, parts_->stack);
}

MatchSpace::~MatchSpace() {
  pcre2_jit_stack_free(parts_->stack);
  pcre2_match_context_free(parts_->context);
  pcre2_match_data_free(parts_->data);
}

struct Pattern::Code {
  explicit Code(pcre2_code* compiled) : code(compiled) {}
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  pcre2_code* code;
};

Pattern::Pattern(std::string_view expression, const std::string& where)
    : expression_(expression), where_(where) {
  if (expression.size() > kLongestExpression) {
    fail(ErrorCode::kData, absl::StrCat(where, " is a pattern of ", expression.size(),
                                        " bytes; at most ", kLongestExpression, " are possible"));
  }
  const std::string translated = translate_pattern(expression, where);
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_compile_context* context = allocated(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 100);
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    fail(ErrorCode::kData, absl::StrCat(where, " is no pattern: ", message_of(error), " at byte ",
                                        at, " of \"", translated, "\""));
  }
  code_ = std::make_unique<const Code>(code);
  uint32_t empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &empty);
  if (empty != 0) {
    fail(ErrorCode::kData, absl::StrCat(where, " is a pattern that matches an empty text, \"",
                                        expression_, "\": such cannot be used"));
  }
  // Without just-in-time compilation (a system may forbid it) matching is slower, not different.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

Pattern::~Pattern() = default;

bool Pattern::find(std::string_view text, size_t from, MatchSpace& space, MatchRange& match) const {
  const MatchSpace::Parts& parts = *space.parts_;
  const int found = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                from, PCRE2_NO_UTF_CHECK, parts.data, parts.context);
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) {
    fail(ErrorCode::kData, absl::StrCat(where_, ": the search for \"", expression_,
                                        "\" gave up: ", message_of(found)));
  }
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(parts.data);
  match = {range[0], range[1]};
  return true;
}

}  // namespace longhaul::launch
