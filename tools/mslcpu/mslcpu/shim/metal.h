// Metal Shading Language for clang's "C++ for OpenCL 2021" front end. device, threadgroup, constant and
// thread are real address spaces there, so a wrong one is a compile error, as with Apple's compiler.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#include "../native/operations.h"
#include "language.h"
#include "traits.h"
#include "vectors.h"
#include "limits.h"
#include "math.h"
#include "integer.h"
#include "emulated/runtime.h"
#include "emulated/simdgroup.h"
#include "emulated/matrix.h"
#include "emulated/atomic.h"
#include "emulated/arguments.h"
using metal::__make;
using metal::as_type;
namespace simd = metal;
