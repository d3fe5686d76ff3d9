#include "tests/dist/large_message.h"

#include <gtest/gtest.h>

#include "dist/local/local.h"

namespace longhaul::dist {
namespace {

TEST(Large, MessageBeyondInt) { run_local(2, std::chrono::minutes(2), testing::large_message); }

}  // namespace
}  // namespace longhaul::dist
