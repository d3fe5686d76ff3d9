#include "tests/kernels/reference.h"
