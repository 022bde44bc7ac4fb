// Keywords, types and constants of the language itself.
#pragma once
#define device __global
#define threadgroup __local
#define constant __constant
#define thread __private
#define kernel
#define coherent(scope)
#define METAL_FUNC inline __attribute__((always_inline))
#define MSL_OVERLOAD static inline __attribute__((always_inline)) __attribute__((overloadable))
#define is_function_constant_defined(name) (__defined_##name)

typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef __INTPTR_TYPE__ intptr_t;

#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
#define HUGE_VALF (__builtin_inff())
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.1920928955078125e-07f
#define HALF_MAX ((half)65504.0f)
#define HALF_MIN ((half)6.103515625e-05f)
#define HALF_EPSILON ((half)0.0009765625f)
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 0xffffffffu
#define SHRT_MAX 32767
#define USHRT_MAX 65535
#define CHAR_BIT 8
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f

#define MSL_VECTORS(T)                                \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)

#define MSL_PACKED(T, N)                             \
  struct packed_##T##N {                             \
    T element[N];                                    \
    packed_##T##N() = default;                       \
    packed_##T##N(T##N v) {                          \
      for (int i = 0; i < N; i++) element[i] = v[i]; \
    }                                                \
    MSL_UNPACK(T##N, N, __private)                   \
    MSL_UNPACK(T##N, N, __global)                    \
    MSL_UNPACK(T##N, N, __local)                     \
    MSL_UNPACK(T##N, N, __constant)                  \
  };
#define MSL_UNPACK(V, N, SPACE)                    \
  operator V() const SPACE {                       \
    V v;                                           \
    for (int i = 0; i < N; i++) v[i] = element[i]; \
    return v;                                      \
  }
#define MSL_PACKED_SIZES(T) MSL_PACKED(T, 2) MSL_PACKED(T, 3) MSL_PACKED(T, 4)
MSL_PACKED_SIZES(float)
MSL_PACKED_SIZES(half)
MSL_PACKED_SIZES(bfloat)
MSL_PACKED_SIZES(char)
MSL_PACKED_SIZES(uchar)
MSL_PACKED_SIZES(short)
MSL_PACKED_SIZES(ushort)
MSL_PACKED_SIZES(int)
MSL_PACKED_SIZES(uint)
