// Parameters in flat buckets.
//
// A model declares its parameters once; they are laid out one after the other in buckets (one per
// layer), each padded so that it divides into equal shards. Values and gradients are then a few
// flat arrays: gradient reduction, the sharded optimizer and checkpoints see ranges, models see
// tensors through Parameter::use().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace longhaul::parallel {

// How a parameter starts: constant, or normal with a standard deviation. Values depend on the seed,
// the name and the element only.
struct Initializer {
  double constant = 0;
  double standard_deviation = 0;
};

struct ParameterSpec {
  std::string name;  // as in Hugging Face models: "model.layers.0.self_attn.q_proj.weight"
  Shape shape;
  Initializer initializer;
  bool weight_decay = true;
  bool trained = true;  // else frozen: without gradient and optimizer state
  int bucket = 0;
};

class ParameterStore;

// A handle; valid as long as its store.
class Parameter {
 public:
  Parameter() = default;
  // The values, to compute with.
  ConstTensorView use() const;
  bool trained() const { return spec().trained; }
  // The gradient of a trained one, in the accumulator type; layers add to it.
  TensorView grad() const;
  // The same, or for a frozen one memory from `scratch`, for kernels that write a gradient anyway.
  TensorView grad_or(Arena& scratch) const;
  const ParameterSpec& spec() const;

 private:
  friend class ParameterStore;
  Parameter(const ParameterStore* store, size_t index) : store_(store), index_(index) {}
  const ParameterStore* store_ = nullptr;
  size_t index_ = 0;
};

class ParameterStore {
 public:
  // shards: by how many ranks buckets are to be divided.
  ParameterStore(DType dtype, int shards) : dtype_(dtype), shards_(shards) {}
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // Buckets are numbered from 0 in the order of declaration. What is frozen lies in buckets of its
  // own, beside those of the same number.
  Parameter declare(ParameterSpec spec);

  // After the last declaration: takes values (dtype) and gradients (accumulator type) from arenas,
  // which may be measuring. Gradients are zero; frozen buckets have none.
  void allocate(const Context&, Arena& values, Arena& gradients);
  // The same without gradients, which then nobody may ask for.
  void allocate_values(const Context&, Arena& values);
  void initialize(const Context&, uint64_t seed);
  void zero_gradients(const Context&);

  struct Entry {
    ParameterSpec spec;
    size_t bucket = 0;   // of buckets()
    int64_t offset = 0;  // in its bucket, in elements
    int64_t size() const { return spec.shape.elements(); }
  };
  struct Bucket {
    int number = 0;  // ParameterSpec::bucket
    bool trained = true;
    int64_t size = 0;           // elements, padded: a multiple of shards * 16
    TensorView values = {};     // [size]
    TensorView gradients = {};  // [size], or absent
    std::vector<size_t> entries = {};
  };

  DType dtype() const { return dtype_; }
  int shards() const { return shards_; }
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const Bucket& bucket_of(const Entry& entry) const { return buckets_[entry.bucket]; }
  int64_t elements() const;  // without padding
  int64_t trained_elements() const;

 private:
  friend class Parameter;
  DType dtype_;
  int shards_;
  std::vector<Entry> entries_;
  std::vector<Bucket> buckets_;
};

}  // namespace longhaul::parallel
