// Placed tasks in rounds, one after the other: rows travel one round ahead of their use, results
// one round behind. Internal to the planners.
#pragma once

#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::parallel {

class Pipeline {
 public:
  Pipeline(const Problem& problem, Direction direction, int rank);

  // A buffer for what this rank needs of others for tasks like this one, whatever their rows: of as
  // many rows as any rank has, which lie there under their row numbers at home. So memory does not
  // depend on documents as long as the number of buffers does not.
  int add_buffer(const PlacedTask& task);

  // Round 0: queries and keys are the server's own. Round i > 0: one of the two is, and the rows of
  // the other that the mask lets take part come from their owner during step i - 1 into `buffer`;
  // step i computes, and what comes of them (out and lse of queries, gradients) goes back during
  // step i + 1. In a round a rank may be the server of one task and lend its rows for one; tasks of
  // others are ignored. Rounds come in ascending order, on all ranks alike. In rounds that follow
  // each other a server uses different buffers.
  void add(int round, const PlacedTask& task, int buffer = 0);

  Plan finish();

 private:
  struct Parcel;  // rows that travel

  void borrow(int round, int owner, int buffer, const Parcel& parcel);
  void lend(int round, int server, const Parcel& parcel);
  Slot buffer_for(const PlacedTask& task) const;
  Step& step(int index);
  // What travels back for rows of this side.
  Fields results(bool keys) const;

  const Problem& problem_;
  Direction direction_;
  int rank_;
  Plan plan_;
};

}  // namespace longhaul::parallel
