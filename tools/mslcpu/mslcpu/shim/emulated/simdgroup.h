// Barriers and SIMD-group functions.
#pragma once
namespace metal {
enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }
enum memory_order {
  memory_order_relaxed,
  memory_order_acquire = 2,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst,
};
METAL_FUNC void threadgroup_barrier(mem_flags flags) { __msl_barrier((uint)flags, 0); }
METAL_FUNC void simdgroup_barrier(mem_flags flags) { __msl_simd(MSL_FENCE, 0, 0, (uint)flags, nullptr, 0); }

template <class T>
MSL_OVERLOAD T __exchange(uint operation, T v, uint operand) {
  __msl_simd(operation, 0, sizeof(T), operand, &v, 0);
  return v;
}
#define MSL_LANE_EXCHANGE(NAME, OPERATION)         \
  template <class T>                               \
  MSL_OVERLOAD T simd_##NAME(T v, ushort i) {      \
    return __exchange(OPERATION, v, i);            \
  }                                                \
  template <class T>                               \
  MSL_OVERLOAD T quad_##NAME(T v, ushort i) {      \
    return __exchange(MSL_QUAD + OPERATION, v, i); \
  }
MSL_LANE_EXCHANGE(shuffle, MSL_SHUFFLE)
MSL_LANE_EXCHANGE(broadcast, MSL_SHUFFLE)
MSL_LANE_EXCHANGE(shuffle_xor, MSL_SHUFFLE_XOR)
MSL_LANE_EXCHANGE(shuffle_up, MSL_SHUFFLE_UP)
MSL_LANE_EXCHANGE(shuffle_down, MSL_SHUFFLE_DOWN)
template <class T>
MSL_OVERLOAD T simd_broadcast_first(T v) {
  return __exchange(MSL_BROADCAST_FIRST, v, 0);
}
template <class T>
MSL_OVERLOAD T simd_shuffle_rotate_up(T v, ushort d) {
  return __exchange(MSL_ROTATE, v, 32 - (d & 31));
}
template <class T>
MSL_OVERLOAD T simd_shuffle_rotate_down(T v, ushort d) {
  return __exchange(MSL_ROTATE, v, d & 31);
}
template <class T>
MSL_OVERLOAD T simd_shuffle_and_fill_up(T v, T fill, ushort d) {
  v = __exchange(MSL_SHUFFLE_UP, v, d);
  return __msl_position(MSL_LANE, 0) < d ? fill : v;
}
template <class T>
MSL_OVERLOAD T simd_shuffle_and_fill_down(T v, T fill, ushort d) {
  v = __exchange(MSL_SHUFFLE_DOWN, v, d);
  return __msl_position(MSL_LANE, 0) + d >= 32 ? fill : v;
}

// Reductions run in 32 or 64 bits.
template <class T>
struct __widened {
  static constexpr __constant uint code = is_floating_point_v<T> ? MSL_FLOAT
                                          : sizeof(T) == 8       ? (is_signed_v<T> ? MSL_LONG : MSL_ULONG)
                                          : is_signed_v<T>       ? MSL_INT
                                                                 : MSL_UINT;
  typedef conditional_t<code == MSL_FLOAT, float,
                        conditional_t<sizeof(T) == 8, T, conditional_t<code == MSL_INT, int, uint>>>
      type;
};
template <class T>
MSL_OVERLOAD T __reduce(uint operation, T v) {
  if constexpr (__vector<T>::is) {
    for (int i = 0; i < __vector<T>::size; i++)
      v[i] = __reduce<typename __vector<T>::element>(operation, v[i]);
    return v;
  } else {
    typename __widened<T>::type wide = (typename __widened<T>::type)v;
    __msl_simd(operation, __widened<T>::code, sizeof(wide), 0, &wide, 0);
    return (T)wide;
  }
}
#define MSL_REDUCE(NAME, OPERATION)           \
  template <class T>                          \
  MSL_OVERLOAD T simd_##NAME(T v) {           \
    return __reduce(OPERATION, v);            \
  }                                           \
  template <class T>                          \
  MSL_OVERLOAD T quad_##NAME(T v) {           \
    return __reduce(MSL_QUAD + OPERATION, v); \
  }
MSL_REDUCE(sum, MSL_SUM)
MSL_REDUCE(product, MSL_PRODUCT)
MSL_REDUCE(min, MSL_MIN)
MSL_REDUCE(max, MSL_MAX)
MSL_REDUCE(and, MSL_AND)
MSL_REDUCE(or, MSL_OR)
MSL_REDUCE(xor, MSL_XOR)
MSL_REDUCE(prefix_inclusive_sum, MSL_PREFIX_SUM)
MSL_REDUCE(prefix_exclusive_sum, MSL_PREFIX_SUM_EXCLUSIVE)
MSL_REDUCE(prefix_inclusive_product, MSL_PREFIX_PRODUCT)
MSL_REDUCE(prefix_exclusive_product, MSL_PREFIX_PRODUCT_EXCLUSIVE)

METAL_FUNC ulong __ballot(bool claim) {
  ulong mask = claim;
  __msl_simd(MSL_BALLOT, MSL_ULONG, 8, 0, &mask, 0);
  return mask;
}
struct simd_vote {
  typedef ulong vote_t;
  vote_t mask;
  explicit simd_vote(vote_t given = 0) : mask(given) {}
  explicit operator vote_t() const { return mask; }
  bool all() const { return mask == 0xffffffffUL; }
  bool any() const { return mask != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool claim) { return simd_vote(__ballot(claim)); }
METAL_FUNC simd_vote simd_active_threads_mask() { return simd_vote(__ballot(true)); }
METAL_FUNC bool simd_all(bool claim) { return __ballot(!claim) == 0; }
METAL_FUNC bool simd_any(bool claim) { return __ballot(claim) != 0; }
METAL_FUNC bool simd_is_first() {
  return (uint)__builtin_ctzl(__ballot(true)) == __msl_position(MSL_LANE, 0);
}
}  // namespace metal
