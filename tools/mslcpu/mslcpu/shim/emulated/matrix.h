// simdgroup_matrix. Each lane holds two neighboring elements of one row, where MLX and metal-flash-attention
// find them on Apple's GPUs; the language does not promise this map.
#pragma once
namespace metal {
METAL_FUNC short2 __matrix_place() {  // (column, row) of the lane's first element
  short lane = (short)__msl_position(MSL_LANE, 0), quad = lane / 4;
  return (short2){(short)((quad & 2) * 2 + lane % 2 * 2), (short)((quad & 4) + lane / 2 % 4)};
}
template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "simdgroup_matrix is 8x8");
  typedef T storage_type __attribute__((ext_vector_type(2)));
  storage_type held;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    short2 place = __matrix_place();
    held[0] = place.x == place.y ? diagonal : T(0);
    held[1] = place.x + 1 == place.y ? diagonal : T(0);
  }
  thread storage_type& thread_elements() thread { return held; }
  const thread storage_type& thread_elements() const thread { return held; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int R, int C>
METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, R, C> m;
  m.held[0] = v;
  m.held[1] = v;
  return m;
}

METAL_FUNC ulong __matrix_offset(int element, ulong stride, ulong2 origin, bool transposed) {
  short2 place = __matrix_place();
  ulong column = transposed ? place.y : place.x + element, row = transposed ? place.x + element : place.y;
  return (origin.y + row) * stride + origin.x + column;
}
#define MSL_MATRIX_MEMORY(SPACE)                                                                             \
  template <class T>                                                                                         \
  METAL_FUNC void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m, const SPACE T* from, ulong stride = 8, \
                                 ulong2 origin = (ulong2){0, 0}, bool transposed = false) {                  \
    __msl_simd(MSL_SYNC, 0, 0, 0, nullptr, 0);                                                               \
    for (int i = 0; i < 2; i++) m.held[i] = from[__matrix_offset(i, stride, origin, transposed)];            \
  }                                                                                                          \
  template <class T>                                                                                         \
  METAL_FUNC void simdgroup_store(thread const simdgroup_matrix<T, 8, 8>& m, SPACE T* to, ulong stride = 8,  \
                                  ulong2 origin = (ulong2){0, 0}, bool transposed = false) {                 \
    __msl_simd(MSL_SYNC, 0, 0, 0, nullptr, 0);                                                               \
    for (int i = 0; i < 2; i++) to[__matrix_offset(i, stride, origin, transposed)] = m.held[i];              \
  }
MSL_MATRIX_MEMORY(device)
MSL_MATRIX_MEMORY(threadgroup)

template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                              thread const simdgroup_matrix<A, 8, 8>& a,
                                              thread const simdgroup_matrix<B, 8, 8>& b,
                                              thread const simdgroup_matrix<C, 8, 8>& c) {
  float parts[6] = {(float)a.held[0], (float)a.held[1], (float)b.held[0],
                    (float)b.held[1], (float)c.held[0], (float)c.held[1]};
  __msl_simd(MSL_MATRIX_MULTIPLY, 0, sizeof(parts), sizeof(A), parts, 0);
  d.held[0] = (D)parts[0];
  d.held[1] = (D)parts[1];
}
template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                   thread const simdgroup_matrix<A, 8, 8>& a,
                                   thread const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_matrix<D, 8, 8> zero = make_filled_simdgroup_matrix<D, 8, 8>(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero);
}
}  // namespace metal
