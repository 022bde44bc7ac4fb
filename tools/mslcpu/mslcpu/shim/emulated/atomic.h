// Atomics of 32 bits or less, relaxed.
#pragma once
namespace metal {
template <class T>
struct atomic {
  T value;
};
template <class T>
MSL_OVERLOAD uint __to_bits(T v) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint, v);
  else
    return (uint)v;
}
template <class T>
MSL_OVERLOAD T __from_bits(uint v) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(T, v);
  else
    return (T)v;
}
template <class T>
MSL_OVERLOAD T __atomic(ulong at, uint operation, uint space, T v, T expected) {
  constexpr uint type = is_same_v<T, float> ? MSL_FLOAT : is_same_v<T, uint> ? MSL_UINT : MSL_INT;
  return __from_bits<T>(
      __msl_atomic(at, operation, type, sizeof(T), space, __to_bits<T>(v), __to_bits<T>(expected), 0));
}
#define MSL_ATOMIC_FETCH(SPACE, CODE, NAME, OPERATION)                                     \
  template <class T, class U>                                                              \
  METAL_FUNC T atomic_##NAME##_explicit(volatile SPACE atomic<T>* at, U v, memory_order) { \
    return __atomic<T>((ulong)at, OPERATION, CODE, (T)v, T(0));                            \
  }
#define MSL_ATOMICS(SPACE, CODE)                                                                             \
  template <class T>                                                                                         \
  METAL_FUNC T atomic_load_explicit(const volatile SPACE atomic<T>* at, memory_order) {                      \
    return __atomic<T>((ulong)at, MSL_LOAD, CODE, T(0), T(0));                                               \
  }                                                                                                          \
  template <class T, class U>                                                                                \
  METAL_FUNC void atomic_store_explicit(volatile SPACE atomic<T>* at, U v, memory_order) {                   \
    __atomic<T>((ulong)at, MSL_STORE, CODE, (T)v, T(0));                                                     \
  }                                                                                                          \
  template <class T>                                                                                         \
  METAL_FUNC bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* at, thread T* wanted, T v, \
                                                        memory_order, memory_order) {                        \
    T was = __atomic<T>((ulong)at, MSL_COMPARE_EXCHANGE, CODE, v, *wanted);                                  \
    bool same = __to_bits<T>(was) == __to_bits<T>(*wanted);                                                  \
    *wanted = was;                                                                                           \
    return same;                                                                                             \
  }                                                                                                          \
  MSL_ATOMIC_FETCH(SPACE, CODE, exchange, MSL_EXCHANGE)                                                      \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_add, MSL_FETCH_ADD)                                                    \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_sub, MSL_FETCH_SUB)                                                    \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_max, MSL_FETCH_MAX)                                                    \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_min, MSL_FETCH_MIN)                                                    \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_or, MSL_FETCH_OR)                                                      \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_and, MSL_FETCH_AND)                                                    \
  MSL_ATOMIC_FETCH(SPACE, CODE, fetch_xor, MSL_FETCH_XOR)
MSL_ATOMICS(device, MSL_DEVICE)
MSL_ATOMICS(threadgroup, MSL_THREADGROUP)
}  // namespace metal
#define atomic_int metal::atomic<int>
#define atomic_uint metal::atomic<uint>
#define atomic_float metal::atomic<float>
#define atomic_bool metal::atomic<bool>
