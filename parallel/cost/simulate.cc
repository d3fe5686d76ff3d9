#include "parallel/cost/simulate.h"

#include <algorithm>
#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

// Memory traffic for each byte: a copy reads and writes; a sum reads two and writes one.
constexpr double kCopied = 2, kFolded = 3, kCleared = 1;

struct Message {
  struct End {
    int rank = 0;
    int step = 0;  // in which it starts
    int due = 0;   // at whose start it is complete
  };
  End sent, received;
  double seconds = 0;    // on its ports; none between slots of one rank
  double latency = 0;    // and then on its way, while the ports serve others
  double processor = 0;  // seconds of each end's processor
  bool between_nodes = false;
  int level = 0;
  double done = 0;
};

// One step of one rank; the last of a rank is its end.
struct Entry {
  double folding = 0;    // what has arrived
  double preparing = 0;  // clears, and packing of what is sent
  double computing = 0;
  std::vector<int> due;           // messages that are complete when it is entered
  std::vector<int> starts;        // messages of either direction
  std::vector<int> published_by;  // whose keys and values are read in place from here on
  int level = 0;
  double started = 0;  // its transfers
  double ended = 0;
};

class Simulation {
 public:
  Simulation(std::span<const Plan> plans, const Cluster& cluster, const SimulationOptions& options)
      : plans_(plans), cluster_(cluster), options_(options), ranks_(plans.size()) {
    LONGHAUL_CHECK(options.node_of.size() == plans.size());
    const KernelProfile* profile = cluster.profile(options.dtype, options.heads.head_dim);
    for (int rank = 0; rank < size(); ++rank) add_rank(rank, profile);
    match();
    order();
  }

  std::vector<RankTime> run() {
    // Within a level, entries before the messages that they start: see order().
    size_t message = 0;
    for (const auto& [level, rank, step] : entry_order_) {
      while (message < message_order_.size() && by_index(message).level < level) {
        transfer(by_index(message++));
      }
      enter(rank, step);
    }
    LONGHAUL_CHECK(message == message_order_.size());
    return std::move(ranks_);
  }

 private:
  int size() const { return static_cast<int>(plans_.size()); }
  int node(int rank) const { return options_.node_of[static_cast<size_t>(rank)]; }
  RankTime& time(int rank) { return ranks_[static_cast<size_t>(rank)]; }
  Entry& entry(int rank, int step) {
    return entries_[static_cast<size_t>(rank)][static_cast<size_t>(step)];
  }
  Message& by_index(size_t position) {
    return messages_[static_cast<size_t>(message_order_[position])];
  }
  double memory_seconds(double bytes) const { return bytes / cluster_.memory_bytes_per_second; }

  bool read_in_place(const Transfer& t, int rank) const {
    const int receiver = t.send ? t.peer : rank;
    return options_.in_place && t.origin >= 0 && node(receiver) == node(t.origin);
  }

  // Whether the rows and heads of a field lie one after the other in their slot.
  static bool dense(const Transfer& t, const Slot& slot, Field field) {
    const int64_t rows = on_key_side(field) ? slot.k_rows : slot.q_rows;
    const int64_t heads = (on_key_side(field) ? slot.kv_heads : slot.q_heads).length;
    if (field == Field::kLse || field == Field::kDelta) {
      return t.rows.length == rows || t.heads.length == 1;
    }
    return t.heads.length == heads || t.rows.length == 1;
  }

  double field_size(const Transfer& t, Field field) const {
    return static_cast<double>(field_bytes(field, options_.heads, options_.dtype) * t.rows.length *
                               t.heads.length);
  }

  void add_rank(int rank, const KernelProfile* profile) {
    const Plan& plan = plans_[static_cast<size_t>(rank)];
    const auto steps = static_cast<int>(plan.steps.size());
    entries_.emplace_back(static_cast<size_t>(steps) + 1);
    RankTime& totals = time(rank);
    totals.received_bytes = received_bytes(plan, rank, options_.heads, options_.dtype);
    for (int s = 0; s < steps; ++s) {
      const Step& step = plan.steps[static_cast<size_t>(s)];
      Entry& here = entry(rank, s);
      for (const Clear& clear : step.clears) {
        here.preparing += clear_seconds(plan.slots[static_cast<size_t>(clear.slot)], clear.fields);
      }
      for (const Transfer& t : step.transfers) add_transfer(rank, s, t);
      for (const Task& task : step.tasks) {
        LONGHAUL_CHECK(profile != nullptr, "a profile of the kernel is there");
        here.computing += task_seconds(task, options_.direction, cluster_, *profile);
        for (const Segment& segment : task.segments) {
          totals.pairs += static_cast<double>(area(segment) * task.q_heads.length);
        }
      }
    }
    published_.push_back(publish_seconds(plan, rank));
  }

  double clear_seconds(const Slot& slot, Fields fields) const {
    double bytes = 0;
    for (Field field : fields.list()) {
      const bool keys = on_key_side(field);
      bytes += static_cast<double>(field_bytes(field, options_.heads, options_.dtype) *
                                   (keys ? slot.k_rows : slot.q_rows) *
                                   (keys ? slot.kv_heads : slot.q_heads).length);
    }
    return memory_seconds(kCleared * bytes);
  }

  double publish_seconds(const Plan& plan, int rank) const {
    const bool shown = std::ranges::any_of(plan.home_readers, [&](int reader) {
      return options_.in_place && node(reader) == node(rank);
    });
    if (!shown) return 0;
    const Slot& home = plan.slots.front();
    const auto bytes =
        static_cast<double>((field_bytes(Field::kK, options_.heads, options_.dtype) +
                             field_bytes(Field::kV, options_.heads, options_.dtype)) *
                            home.k_rows * home.kv_heads.length);
    return memory_seconds(kCopied * bytes);
  }

  void add_transfer(int rank, int step, const Transfer& t) {
    if (read_in_place(t, rank)) {
      if (t.send) return;
      entry(rank, t.done_by).published_by.push_back(t.origin);
      time(rank).in_place_bytes += transfer_bytes(t, rank, options_.heads, options_.dtype);
      return;
    }
    const Slot& slot = plans_[static_cast<size_t>(rank)].slots[static_cast<size_t>(t.slot)];
    for (Field field : t.fields.list()) {
      const double bytes = field_size(t, field);
      const bool packed = !dense(t, slot, field);
      if (t.send) {
        entry(rank, step).preparing += memory_seconds(packed ? kCopied * bytes : 0);
        continue;
      }
      const bool folded = t.reduce != Reduce::kStore;
      const double touched = folded ? kFolded + (packed ? 2 * kCopied : 0) : packed ? kCopied : 0;
      entry(rank, t.done_by).folding += memory_seconds(touched * bytes);
    }
    const int from = t.send ? rank : t.peer, to = t.send ? t.peer : rank;
    (t.send ? sends_ : receives_)[{from, to}].push_back({&t, {rank, step, t.done_by}});
  }

  // Ends of messages between two ranks match in order.
  void match() {
    LONGHAUL_CHECK(sends_.size() == receives_.size(), "every send has its receive");
    for (const auto& [pair, sent] : sends_) {
      const auto& received = receives_[pair];
      LONGHAUL_CHECK(sent.size() == received.size(), "every send has its receive");
      for (size_t i = 0; i < sent.size(); ++i) {
        Message message{.sent = sent[i].end, .received = received[i].end};
        price(message, *sent[i].transfer);
        const auto index = static_cast<int>(messages_.size());
        for (const Message::End& end : {message.sent, message.received}) {
          entry(end.rank, end.step).starts.push_back(index);
          entry(end.rank, end.due).due.push_back(index);
        }
        messages_.push_back(message);
      }
    }
  }

  void price(Message& message, const Transfer& t) {
    double bytes = 0;
    for (Field field : t.fields.list()) bytes += field_size(t, field);
    const auto fields = static_cast<double>(t.fields.list().size());
    const auto on = [&](const Link& link) {
      return fields * link.seconds_per_message + bytes / link.bytes_per_second;
    };
    if (message.sent.rank == message.received.rank) {
      message.processor = 0.5 * (cluster_.within_rank ? on(*cluster_.within_rank)
                                                      : memory_seconds(kCopied * bytes));
      return;
    }
    message.between_nodes = node(message.sent.rank) != node(message.received.rank);
    const std::optional<Link>& known =
        message.between_nodes ? cluster_.between_nodes : cluster_.within_node;
    if (!known) {
      const char* name = message.between_nodes ? "between_nodes" : "within_node";
      fail(ErrorCode::kConfig,
           absl::StrCat("the figures of the cluster do not say how fast links are that this job "
                        "needs (",
                        name,
                        "); measure them on such a job with `longhaul bench comm "
                        "--write FILE`, or write them into the cluster description"));
    }
    // What the processor does for one message it cannot do for another; the rest of a message's
    // start is a way that those of all fields, and of other transfers, go at the same time.
    message.latency = (1 - known->processor_share) * known->seconds_per_message;
    message.seconds = known->processor_share * fields * known->seconds_per_message +
                      bytes / known->bytes_per_second;
    // Links are measured with every rank sending and receiving.
    message.processor = known->processor_share * on(*known) / 2;
  }

  // Longest chains of entries and messages: what a node waits for has a smaller level (a message
  // that of the entries that start it, at most).
  void order() {
    std::vector<std::vector<int>> missing;
    std::vector<int> ends_missing(messages_.size(), 2);
    std::deque<std::pair<int, int>> ready;
    for (int rank = 0; rank < size(); ++rank) {
      auto& counts = missing.emplace_back();
      for (size_t s = 0; s < entries_[static_cast<size_t>(rank)].size(); ++s) {
        counts.push_back(static_cast<int>(entry(rank, static_cast<int>(s)).due.size()) +
                         (s > 0 ? 1 : 0));
      }
      ready.emplace_back(rank, 0);
    }
    const auto arrives = [&](int rank, int step, int level) {
      Entry& next = entry(rank, step);
      next.level = std::max(next.level, level + 1);
      auto& count = missing[static_cast<size_t>(rank)][static_cast<size_t>(step)];
      if (--count == 0) ready.emplace_back(rank, step);
    };
    while (!ready.empty()) {
      const auto [rank, step] = ready.front();
      ready.pop_front();
      const Entry& here = entry(rank, step);
      entry_order_.emplace_back(here.level, rank, step);
      for (int index : here.starts) {
        Message& message = messages_[static_cast<size_t>(index)];
        message.level = std::max(message.level, here.level);
        if (--ends_missing[static_cast<size_t>(index)] > 0) continue;
        message_order_.push_back(index);
        arrives(message.sent.rank, message.sent.due, message.level);
        arrives(message.received.rank, message.received.due, message.level);
      }
      if (step + 1 < static_cast<int>(entries_[static_cast<size_t>(rank)].size())) {
        arrives(rank, step + 1, here.level);
      }
    }
    size_t all = 0;
    for (const auto& entries : entries_) all += entries.size();
    LONGHAUL_CHECK(entry_order_.size() == all, "no plan waits for ever");
    std::ranges::sort(entry_order_);
    std::ranges::sort(message_order_, {}, [&](int index) {
      const Message& m = messages_[static_cast<size_t>(index)];
      const int distance = (m.received.rank - m.sent.rank + size()) % size();
      return std::tuple(m.level, m.received.due - m.received.step, distance, m.sent.rank, index);
    });
  }

  void enter(int rank, int step) {
    Entry& here = entry(rank, step);
    RankTime& totals = time(rank);
    double before = 0;
    if (step > 0) {
      before = entry(rank, step - 1).ended;
    } else {
      before = published_[static_cast<size_t>(rank)];
      totals.copying += before;
    }
    double entered = before;
    for (int index : here.due) {
      entered = std::max(entered, messages_[static_cast<size_t>(index)].done);
    }
    for (int owner : here.published_by) {
      entered =
          std::max(entered, published_[static_cast<size_t>(owner)] + cluster_.seconds_to_publish);
    }
    double moving = 0;
    for (int index : here.starts) moving += messages_[static_cast<size_t>(index)].processor;
    here.started = entered + here.folding + here.preparing;
    here.ended = here.started + moving + here.computing;
    totals.waiting += entered - before;
    totals.copying += here.folding + here.preparing + moving;
    totals.computing += here.computing;
    totals.seconds = here.ended;
  }

  void transfer(Message& message) {
    double start = std::max(entry(message.sent.rank, message.sent.step).started,
                            entry(message.received.rank, message.received.step).started);
    if (message.sent.rank == message.received.rank) {
      message.done = start;
      return;
    }
    double& out = port(message, message.sent.rank, true);
    double& in = port(message, message.received.rank, false);
    start = std::max({start, out, in});
    out = in = start + message.seconds;
    message.done = out + message.latency;
  }

  // When the port is free.
  double& port(const Message& message, int rank, bool sends) {
    if (!message.between_nodes) return ports_[{sends, false, rank}];
    if (cluster_.adapters_per_node == 0) return ports_[{sends, true, rank}];
    int place = 0;
    for (int r = 0; r < rank; ++r) place += node(r) == node(rank) ? 1 : 0;
    const int adapter = place % cluster_.adapters_per_node;
    return ports_[{sends, true, node(rank) * cluster_.adapters_per_node + adapter}];
  }

  struct Listed {
    const Transfer* transfer;
    Message::End end;
  };

  std::span<const Plan> plans_;
  const Cluster& cluster_;
  const SimulationOptions& options_;
  std::vector<RankTime> ranks_;
  std::vector<std::vector<Entry>> entries_;  // by rank and step; one more than the plan's
  std::vector<double> published_;            // when home's keys and values can be read
  std::map<std::pair<int, int>, std::vector<Listed>> sends_, receives_;
  std::vector<Message> messages_;
  std::vector<std::tuple<int, int, int>> entry_order_;  // level, rank, step
  std::vector<int> message_order_;
  std::map<std::tuple<bool, bool, int>, double> ports_;
};

}  // namespace

std::vector<RankTime> simulate(std::span<const Plan> plans, const Cluster& cluster,
                               const SimulationOptions& options) {
  return Simulation(plans, cluster, options).run();
}

}  // namespace longhaul::parallel
