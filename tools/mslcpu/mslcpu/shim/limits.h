// metal::numeric_limits.
#pragma once
namespace metal {
template <class T>
struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, LOW, HIGH)                         \
  template <>                                                    \
  struct numeric_limits<T> {                                     \
    static constexpr T max() { return (T)HIGH; }                 \
    static constexpr T min() { return (T)LOW; }                  \
    static constexpr T lowest() { return (T)LOW; }               \
    static constexpr __constant bool is_integer = true;          \
    static constexpr __constant bool is_signed = is_signed_v<T>; \
    static constexpr __constant bool has_infinity = false;       \
  };
MSL_INTEGER_LIMITS(bool, 0, 1)
MSL_INTEGER_LIMITS(char, -128, 127)
MSL_INTEGER_LIMITS(signed char, -128, 127)
MSL_INTEGER_LIMITS(uchar, 0, 255)
MSL_INTEGER_LIMITS(short, -32768, 32767)
MSL_INTEGER_LIMITS(ushort, 0, 65535)
MSL_INTEGER_LIMITS(int, (-2147483647 - 1), 2147483647)
MSL_INTEGER_LIMITS(uint, 0, 0xffffffffu)
MSL_INTEGER_LIMITS(long, (-9223372036854775807L - 1), 9223372036854775807L)
MSL_INTEGER_LIMITS(ulong, 0, 0xffffffffffffffffUL)

#define MSL_FLOAT_LIMITS(T, HIGH, LOW, EPSILON)                      \
  template <>                                                        \
  struct numeric_limits<T> {                                         \
    static constexpr T max() { return (T)HIGH; }                     \
    static constexpr T min() { return (T)LOW; }                      \
    static constexpr T lowest() { return (T) - HIGH; }               \
    static constexpr T epsilon() { return (T)EPSILON; }              \
    static constexpr T infinity() { return (T)__builtin_inff(); }    \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); } \
    static constexpr __constant bool is_integer = false;             \
    static constexpr __constant bool is_signed = true;               \
    static constexpr __constant bool has_infinity = true;            \
  };
MSL_FLOAT_LIMITS(float, 3.402823466e+38f, 1.175494351e-38f, 1.1920928955078125e-07f)
MSL_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-05f, 0.0009765625f)
MSL_FLOAT_LIMITS(bfloat, 3.3895313892515355e+38f, 1.175494351e-38f, 0.0078125f)
}  // namespace metal
