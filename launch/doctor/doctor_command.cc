#include "launch/doctor/doctor_command.h"

#include <iostream>
#include <memory>

#include "dist/mpi/mpi.h"
#include "kernels/core/error.h"
#include "launch/doctor/doctor.h"

namespace longhaul::launch {

Action add_doctor_command(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "One JSON object instead of the table");
  return [json] {
    const Diagnosis diagnosis = diagnose();
    // Under a launcher: once a node.
    if (dist::detect_launch().local_rank == 0) {
      std::cout << (*json ? to_json(diagnosis) : to_table(diagnosis)) << std::flush;
    }
    return diagnosis.can_train() ? 0 : static_cast<int>(ErrorCode::kEnvironment);
  };
}

}  // namespace longhaul::launch
