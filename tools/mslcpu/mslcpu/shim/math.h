// Floating point functions, in metal::, metal::fast:: and metal::precise::. One accuracy serves all three.
#pragma once
namespace metal {
#define MSL_UNARY_VECTOR(NAME, V, E, EXPRESSION)  \
  MSL_OVERLOAD V NAME(V v) {                      \
    V r;                                          \
    for (int i = 0; i < __vector<V>::size; i++) { \
      float x = (float)v[i];                      \
      r[i] = (E)(EXPRESSION);                     \
    }                                             \
    return r;                                     \
  }
#define MSL_UNARY(NAME, EXPRESSION)                       \
  MSL_OVERLOAD float NAME(float x) { return EXPRESSION; } \
  MSL_OVERLOAD half NAME(half h) {                        \
    float x = (float)h;                                   \
    return (half)(EXPRESSION);                            \
  }                                                       \
  MSL_UNARY_VECTOR(NAME, float2, float, EXPRESSION)       \
  MSL_UNARY_VECTOR(NAME, float3, float, EXPRESSION)       \
  MSL_UNARY_VECTOR(NAME, float4, float, EXPRESSION)       \
  MSL_UNARY_VECTOR(NAME, half2, half, EXPRESSION)         \
  MSL_UNARY_VECTOR(NAME, half3, half, EXPRESSION)         \
  MSL_UNARY_VECTOR(NAME, half4, half, EXPRESSION)
#define MSL_BINARY(NAME, EXPRESSION)                               \
  MSL_OVERLOAD float NAME(float a, float b) { return EXPRESSION; } \
  MSL_OVERLOAD half NAME(half a_, half b_) {                       \
    float a = (float)a_, b = (float)b_;                            \
    return (half)(EXPRESSION);                                     \
  }
#define MSL_MATH                                                                           \
  MSL_UNARY(exp, __builtin_elementwise_exp(x))                                             \
  MSL_UNARY(exp2, __builtin_elementwise_exp2(x))                                           \
  MSL_UNARY(exp10, __builtin_exp10f(x))                                                    \
  MSL_UNARY(log, __builtin_elementwise_log(x))                                             \
  MSL_UNARY(log2, __builtin_elementwise_log2(x))                                           \
  MSL_UNARY(log10, __builtin_elementwise_log10(x))                                         \
  MSL_UNARY(sin, __builtin_elementwise_sin(x))                                             \
  MSL_UNARY(cos, __builtin_elementwise_cos(x))                                             \
  MSL_UNARY(tan, __builtin_tanf(x))                                                        \
  MSL_UNARY(asin, __builtin_asinf(x))                                                      \
  MSL_UNARY(acos, __builtin_acosf(x))                                                      \
  MSL_UNARY(atan, __builtin_atanf(x))                                                      \
  MSL_UNARY(sinh, __builtin_sinhf(x))                                                      \
  MSL_UNARY(cosh, __builtin_coshf(x))                                                      \
  MSL_UNARY(tanh, __builtin_tanhf(x))                                                      \
  MSL_UNARY(sqrt, __builtin_elementwise_sqrt(x))                                           \
  MSL_UNARY(rsqrt, 1.0f / __builtin_elementwise_sqrt(x))                                   \
  MSL_UNARY(floor, __builtin_elementwise_floor(x))                                         \
  MSL_UNARY(ceil, __builtin_elementwise_ceil(x))                                           \
  MSL_UNARY(trunc, __builtin_elementwise_trunc(x))                                         \
  MSL_UNARY(rint, __builtin_elementwise_rint(x))                                           \
  MSL_UNARY(round, __builtin_elementwise_round(x))                                         \
  MSL_UNARY(fract, x - __builtin_elementwise_floor(x))                                     \
  MSL_UNARY(fabs, __builtin_elementwise_abs(x))                                            \
  MSL_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f)                                     \
  MSL_UNARY(saturate, __builtin_elementwise_min(__builtin_elementwise_max(x, 0.0f), 1.0f)) \
  MSL_BINARY(pow, __builtin_elementwise_pow(a, b))                                         \
  MSL_BINARY(powr, __builtin_elementwise_pow(a, b))                                        \
  MSL_BINARY(fmod, __builtin_fmodf(a, b))                                                  \
  MSL_BINARY(atan2, __builtin_atan2f(a, b))                                                \
  MSL_BINARY(divide, a / b)                                                                \
  MSL_BINARY(copysign, __builtin_elementwise_copysign(a, b))                               \
  MSL_BINARY(fmin, __builtin_fminf(a, b))                                                  \
  MSL_BINARY(fmax, __builtin_fmaxf(a, b))                                                  \
  MSL_OVERLOAD float ldexp(float a, int b) { return __builtin_ldexpf(a, b); }
MSL_MATH
namespace fast {
MSL_MATH
}
namespace precise {
MSL_MATH
}

#define MSL_FMA(T)                                                                 \
  MSL_OVERLOAD T fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); } \
  MSL_OVERLOAD T mad(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); }
#define MSL_FMA_SIZES(T) MSL_FMA(T) MSL_FMA(T##2) MSL_FMA(T##3) MSL_FMA(T##4)
MSL_FMA_SIZES(float)
MSL_FMA_SIZES(half)

#define MSL_ORDER(T)                                               \
  MSL_OVERLOAD constexpr T max(T a, T b) { return a > b ? a : b; } \
  MSL_OVERLOAD constexpr T min(T a, T b) { return a < b ? a : b; } \
  MSL_OVERLOAD constexpr T clamp(T x, T a, T b) { return x < a ? a : x > b ? b : x; }
MSL_ORDER(char)
MSL_ORDER(uchar)
MSL_ORDER(short)
MSL_ORDER(ushort)
MSL_ORDER(int)
MSL_ORDER(uint)
MSL_ORDER(long)
MSL_ORDER(ulong)

#define MSL_FLOAT_ORDER(T)                                                        \
  MSL_OVERLOAD T max(T a, T b) { return (T)__builtin_fmaxf((float)a, (float)b); } \
  MSL_OVERLOAD T min(T a, T b) { return (T)__builtin_fminf((float)a, (float)b); } \
  MSL_OVERLOAD T clamp(T x, T a, T b) { return min(max(x, a), b); }               \
  MSL_OVERLOAD T mix(T a, T b, T t) { return a + (b - a) * t; }
MSL_FLOAT_ORDER(float)
MSL_FLOAT_ORDER(half)

#define MSL_VECTOR_ORDER(V)                                                \
  MSL_OVERLOAD V max(V a, V b) { return __builtin_elementwise_max(a, b); } \
  MSL_OVERLOAD V min(V a, V b) { return __builtin_elementwise_min(a, b); } \
  MSL_OVERLOAD V clamp(V x, V a, V b) { return min(max(x, a), b); }        \
  MSL_OVERLOAD V max(V a, __vector<V>::element b) { return max(a, (V)b); } \
  MSL_OVERLOAD V min(V a, __vector<V>::element b) { return min(a, (V)b); }
#define MSL_VECTOR_ORDERS(T) MSL_VECTOR_ORDER(T##2) MSL_VECTOR_ORDER(T##3) MSL_VECTOR_ORDER(T##4)
MSL_VECTOR_ORDERS(float)
MSL_VECTOR_ORDERS(half)
MSL_VECTOR_ORDERS(char)
MSL_VECTOR_ORDERS(uchar)
MSL_VECTOR_ORDERS(short)
MSL_VECTOR_ORDERS(ushort)
MSL_VECTOR_ORDERS(int)
MSL_VECTOR_ORDERS(uint)

#define MSL_ABS(T) \
  MSL_OVERLOAD T abs(T a) { return __builtin_elementwise_abs(a); }
#define MSL_ABS_SIZES(T) MSL_ABS(T) MSL_ABS(T##2) MSL_ABS(T##3) MSL_ABS(T##4)
MSL_ABS_SIZES(float)
MSL_ABS_SIZES(half)
MSL_ABS_SIZES(int)
MSL_ABS(short)
MSL_ABS(long)

template <class T>
MSL_OVERLOAD T max3(T a, T b, T c) {
  return max(max(a, b), c);
}
template <class T>
MSL_OVERLOAD T min3(T a, T b, T c) {
  return min(min(a, b), c);
}
#define MSL_CLASSIFY(NAME)                                        \
  MSL_OVERLOAD bool NAME(float x) { return __builtin_##NAME(x); } \
  MSL_OVERLOAD bool NAME(half x) { return __builtin_##NAME((float)x); }
MSL_CLASSIFY(isnan)
MSL_CLASSIFY(isinf)
MSL_CLASSIFY(isfinite)
MSL_CLASSIFY(isnormal)
MSL_OVERLOAD bool signbit(float x) { return __builtin_signbitf(x); }
template <class T, int N>
MSL_OVERLOAD T dot(vec<T, N> a, vec<T, N> b) {
  T s = a[0] * b[0];
  for (int i = 1; i < N; i++) s += a[i] * b[i];
  return s;
}
template <class T, int N>
MSL_OVERLOAD T length_squared(vec<T, N> a) {
  return dot(a, a);
}
template <class T, int N>
MSL_OVERLOAD T length(vec<T, N> a) {
  return sqrt(dot(a, a));
}
}  // namespace metal
