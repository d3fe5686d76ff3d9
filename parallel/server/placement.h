// Work placed on servers, and what that costs: time, bytes on the wire, memory for others' rows.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/layout/load.h"
#include "parallel/server/row_bytes.h"
#include "parallel/server/work.h"

namespace longhaul::parallel {

// Room to align the fields of a slot, and of a range of rows in staging memory.
inline constexpr int64_t kSlotMargin = int64_t{6} * 256;
inline constexpr int64_t kRangeMargin = int64_t{2} * 6 * 16;

// Disjoint ranges of rows.
class RowSet {
 public:
  void add(int64_t begin, int64_t end);
  int64_t missing(int64_t begin, int64_t end) const;  // rows of [begin, end) that are not in it
  std::vector<Interval> gaps(int64_t begin, int64_t end) const;
  Interval longest_in(int64_t begin, int64_t end) const;  // of the parts in [begin, end)

 private:
  std::vector<Interval> rows_;  // ascending; touching ones are joined
};

// A piece and what it takes: `rate` for each pair of each head, in seconds or in pairs.
struct Work {
  WorkPiece piece;
  double rate = 1;
  double cost() const {
    return rate * static_cast<double>(area(piece.band)) * static_cast<double>(piece.heads.length);
  }
};

// A server is named by its place in Problem::servers.
class Placement {
 public:
  Placement(const Problem& problem, Direction direction);

  int servers() const { return static_cast<int>(ranks_.size()); }
  int rank(int server) const { return ranks_[static_cast<size_t>(server)]; }
  int server_of(int rank) const { return server_of_[static_cast<size_t>(rank)]; }  // -1: none
  const std::vector<KeyList>& keys() const { return keys_; }
  // All of the sample, on no server yet.
  std::vector<Work> all() const;

  // Bytes of a row of all heads that share a kv head: on the wire, there and back.
  int64_t query_bytes() const { return row_bytes_.query.moved; }
  int64_t key_bytes() const { return row_bytes_.key.moved; }

  // Bytes on the wire that the piece adds: rows that lie at the server already cost nothing.
  int64_t added_bytes(const WorkPiece& piece, int server) const;
  // Whether no rank's memory for others' rows exceeds the limit then.
  bool fits(const WorkPiece& piece, int server) const;
  // The longest part of the piece's keys (of its first head) that lies at the server.
  IndexRange resident_keys(const WorkPiece& piece, int server) const;

  void place(const Work& work, int server);
  Work take(int server, size_t index);  // its rows are still counted as lying there

  const std::vector<Work>& work(int server) const { return work_[static_cast<size_t>(server)]; }
  double load(int server) const { return load_[static_cast<size_t>(server)]; }
  // Bytes on the wire, there and back, of what was ever placed there.
  int64_t bytes(int server) const { return bytes_[static_cast<size_t>(server)]; }
  // An upper bound of the memory that a rank needs for others' rows: slots and what is staged.
  int64_t memory(int rank) const { return memory_[static_cast<size_t>(rank)]; }
  std::vector<PlacedTask> tasks() const;

 private:
  struct HeadRows {  // what lies at one server of a range of kv heads
    Span heads;
    RowSet queries, keys;
  };
  struct Added {
    int rank;
    int64_t bytes;
  };
  void cut_heads(int server, int64_t head);
  std::vector<Added> added_memory(const WorkPiece& piece, int server) const;
  double rate(const WorkPiece& piece) const;
  Span kv_heads(const WorkPiece& piece) const;
  Interval query_rows(const WorkPiece& piece) const;
  Interval key_rows(const WorkPiece& piece) const;

  const Problem& problem_;
  Direction direction_;
  std::vector<KeyList> keys_;
  std::vector<int64_t> first_key_;  // of each list, in one numbering of all
  std::vector<int64_t> first_row_;  // of each rank, likewise
  std::vector<int> ranks_, server_of_;
  RowBytes row_bytes_;
  std::vector<std::vector<HeadRows>> rows_;  // by server; the heads' ranges are ascending
  std::vector<std::vector<Work>> work_;
  std::vector<double> load_;
  std::vector<int64_t> bytes_;
  std::vector<int64_t> memory_;
};

}  // namespace longhaul::parallel
