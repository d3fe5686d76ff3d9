// Placed tasks in rounds, one after the other: rows travel one round ahead of their use, results
// one round behind, in buffers whose number and size depend on the layout alone. Internal to the
// planners.
#pragma once

#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::parallel {

class Pipeline {
 public:
  // How many buffers there are for rows of others, used in turn: one for each round in which such
  // rows come, two at most.
  struct Buffers {
    int keys = 0;
    int queries = 0;
  };
  Pipeline(const Problem& problem, Direction direction, int rank, Buffers buffers);

  // Round 0: queries and keys are the server's own. Round i > 0: one of the two is, and the rows of
  // the other that the mask lets take part come from their owner during step i - 1; step i
  // computes, and what comes of them (out and lse of queries, gradients) goes back during step
  // i + 1. In a round a rank may be the server of one task and lend its rows for one. A task that
  // is neither its own nor for its rows is ignored. Rounds come in ascending order, on all ranks
  // alike.
  void add(int round, const PlacedTask& task);

  Plan finish();

 private:
  struct Parcel;  // rows that travel

  void borrow(int round, int owner, int slot, const Parcel& parcel);
  void lend(int round, int server, const Parcel& parcel);
  int buffer(int round, bool keys) const;
  Step& step(int index);
  // What travels back for rows of this side.
  Fields results(bool keys) const;

  const Problem& problem_;
  Direction direction_;
  int rank_;
  Buffers buffers_;
  Plan plan_;
};

}  // namespace longhaul::parallel
