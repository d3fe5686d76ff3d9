#include "launch/train/sample_exchange.h"

#include <algorithm>

#include "kernels/core/error.h"
#include "parallel/layout/joint.h"

namespace longhaul::launch {

namespace {

// Where every sample is one document, nothing is left to be said.
size_t words(std::span<const int64_t> counts) {
  const int64_t most = std::ranges::max(counts);
  return most > 1 ? static_cast<size_t>(most) : 0;
}

}  // namespace

std::vector<int64_t> gather_numbers(dist::Group& group, const std::vector<int64_t>& mine) {
  const auto count = static_cast<int64_t>(mine.size());
  const Tensor send(DType::kI64, {count}), all(DType::kI64, {group.size(), count});
  std::ranges::copy(mine, send.span<int64_t>().begin());
  Stream host;
  group.all_gather(host, send, all, "call").wait(host);
  return {all.span<int64_t>().begin(), all.span<int64_t>().end()};
}

SampleExchange::SampleExchange(dist::Group& world, const dist::MeshShape& shape, int64_t tokens)
    : world_(world),
      shape_(shape),
      tokens_(tokens),
      now_(static_cast<size_t>(shape.data)),
      next_(static_cast<size_t>(shape.data)) {}

int64_t SampleExchange::count_of(const parallel::Documents* sample) const {
  if (sample == nullptr) return kNone;
  const auto replica = static_cast<size_t>(world_.rank() / shape_.sequence);
  return next_[replica] == *sample ? kAsTold : sample->count();
}

int64_t SampleExchange::count_of_next(const parallel::Documents* next) {
  return next != nullptr ? next->count() : kNone;
}

void SampleExchange::tell(std::span<const int64_t> counts, const parallel::Documents* sample,
                          std::span<const int64_t> next_counts, const parallel::Documents* next) {
  const size_t now_words = words(counts), next_words = words(next_counts);
  std::vector<int64_t> mine(now_words + next_words);
  if (count_of(sample) > 1) std::ranges::copy(sample->begins(), mine.begin());
  if (count_of_next(next) > 1) {
    std::ranges::copy(next->begins(), mine.begin() + static_cast<std::ptrdiff_t>(now_words));
  }
  Told told{.numbers = {}, .words = mine.size()};
  if (!mine.empty()) told.numbers = gather_numbers(world_, mine);
  now_ = samples(counts, told);
  if (std::ranges::max(next_counts) == kNone) return;
  told.first = now_words;
  next_ = samples(next_counts, told);
}

SampleExchange::Samples SampleExchange::samples(std::span<const int64_t> counts,
                                                const Told& told) const {
  Samples samples(static_cast<size_t>(shape_.data));
  const auto sequence = static_cast<size_t>(shape_.sequence);
  for (size_t replica = 0; replica < samples.size(); ++replica) {
    const size_t rank = replica * sequence;
    const int64_t count = counts[rank];
    LONGHAUL_CHECK(
        std::ranges::all_of(counts.subspan(rank, sequence), [&](int64_t c) { return c == count; }),
        "ranks of a replica have different samples");
    if (count == kNone) continue;
    if (count == kAsTold) {
      LONGHAUL_CHECK(next_[replica].has_value());
      samples[replica] = next_[replica];
      continue;
    }
    std::vector<int64_t> begins(static_cast<size_t>(count));  // one: at 0
    if (count > 1) {
      const auto first = static_cast<std::ptrdiff_t>(rank * told.words + told.first);
      std::copy_n(told.numbers.begin() + first, count, begins.begin());
    }
    samples[replica].emplace(tokens_, std::move(begins));
  }
  return samples;
}

parallel::Documents SampleExchange::joint(const Samples& samples) {
  std::vector<parallel::Documents> present;
  for (size_t replica = 0; replica < samples.size(); ++replica) {
    if (!samples[replica]) continue;
    LONGHAUL_CHECK(present.size() == replica, "a replica before this one has no sample");
    present.push_back(*samples[replica]);
  }
  return parallel::side_by_side(present);
}

}  // namespace longhaul::launch
