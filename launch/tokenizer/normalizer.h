// What a tokenizer does to a text before it looks for tokens.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace longhaul::launch {

class Normalizer {
 public:
  enum class Form { kNfc, kNfd, kNfkc, kNfkd };  // Unicode Standard Annex 15

  // Steps are done in the order in which they are added.
  void add_form(Form form) { steps_.push_back({Kind::kForm, form, {}, {}}); }
  // Every occurrence of `what`, which is not empty.
  void add_replace(std::string what, std::string with) {
    steps_.push_back({Kind::kReplace, {}, std::move(what), std::move(with)});
  }
  // Before every text that is not empty.
  void add_prepend(std::string what) {
    steps_.push_back({Kind::kPrepend, {}, {}, std::move(what)});
  }

  bool empty() const { return steps_.empty(); }
  // Parts of a text normalise by themselves if the second begins with what is white space or begins
  // a character of its own: only the forms keep that.
  bool by_parts() const;

  // `text` is UTF-8; with `goes_on` it is the rest of one, which has nothing put before it. The
  // result is a view of `text` or of one of the buffers.
  std::string_view apply(std::string_view text, std::string (&buffers)[2],
                         bool goes_on = false) const;

 private:
  enum class Kind { kForm, kReplace, kPrepend };
  struct Step {
    Kind kind;
    Form form;
    std::string what, with;
  };
  std::vector<Step> steps_;
};

}  // namespace longhaul::launch
