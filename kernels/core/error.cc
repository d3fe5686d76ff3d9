#include "kernels/core/error.h"

#include <new>

#include "absl/strings/str_cat.h"

namespace longhaul {

void fail(ErrorCode code, const std::string& message) { throw Error(code, message); }

void check_failed(const char* file, int line, const char* condition, const std::string& detail) {
  throw Error(ErrorCode::kInternal,
              absl::StrCat("internal error at ", file, ":", line, ": ", condition, " does not hold",
                           detail.empty() ? "" : ": ", detail));
}

std::optional<Error> attempt(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kEnvironment, "out of memory");
  } catch (const std::exception& error) {
    return Error(ErrorCode::kInternal, absl::StrCat("unexpected exception: ", error.what()));
  }
}

}  // namespace longhaul
