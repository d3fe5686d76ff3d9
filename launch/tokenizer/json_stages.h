// The parts of tokenizer.json around the model, into BpeParts. Each takes the field's value, null
// if it is missing; all failures are Error(kData) naming file and field.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launch/tokenizer/bpe_tokenizer.h"

namespace longhaul::launch {

struct StageReader {
  std::string file;
  BpeParts& parts;
  bool byte_level = false;  // a ByteLevel pre-tokenizer has been read: the last one
  bool metaspace = false;

  void normalizer(const nlohmann::json& value, const std::string& field);
  void pre_tokenizer(const nlohmann::json& value, const std::string& field);
  void post_processor(const nlohmann::json& value, const std::string& field);
  void decoder(const nlohmann::json& value, const std::string& field);

 private:
  void split(const nlohmann::json& value, const std::string& field);
  void read_metaspace(const nlohmann::json& value, const std::string& field);
  void template_processing(const nlohmann::json& value, const std::string& field);
};

}  // namespace longhaul::launch
