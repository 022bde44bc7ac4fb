// Integer functions and vector comparisons.
#pragma once
namespace metal {
MSL_OVERLOAD uint popcount(uint x) { return (uint)__builtin_popcount(x); }
MSL_OVERLOAD int popcount(int x) { return __builtin_popcount((uint)x); }
MSL_OVERLOAD ulong popcount(ulong x) { return (ulong)__builtin_popcountl(x); }
MSL_OVERLOAD uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32u; }
MSL_OVERLOAD int clz(int x) { return x ? __builtin_clz((uint)x) : 32; }
MSL_OVERLOAD uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32u; }
MSL_OVERLOAD int ctz(int x) { return x ? __builtin_ctz((uint)x) : 32; }
MSL_OVERLOAD uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_OVERLOAD int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
MSL_OVERLOAD int mul24(int a, int b) { return a * b; }
MSL_OVERLOAD uint mul24(uint a, uint b) { return a * b; }
MSL_OVERLOAD int mad24(int a, int b, int c) { return a * b + c; }
MSL_OVERLOAD uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
MSL_OVERLOAD uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (0xffffffffu >> (32 - bits));
}
MSL_OVERLOAD uint rotate(uint x, uint n) {
  n &= 31;
  return n ? (x << n) | (x >> (32 - n)) : x;
}

#define MSL_SELECT(T) \
  MSL_OVERLOAD T select(T a, T b, bool c) { return c ? b : a; }
MSL_SELECT(float)
MSL_SELECT(half)
MSL_SELECT(bfloat)
MSL_SELECT(int)
MSL_SELECT(uint)
MSL_SELECT(long)
MSL_SELECT(ulong)
template <class T, int N, class M>
MSL_OVERLOAD vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<M, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++) r[i] = c[i] ? b[i] : a[i];
  return r;
}
template <class M, int N>
MSL_OVERLOAD bool any(vec<M, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || v[i];
  return r;
}
template <class M, int N>
MSL_OVERLOAD bool all(vec<M, N> v) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && v[i];
  return r;
}
MSL_OVERLOAD bool any(bool b) { return b; }
MSL_OVERLOAD bool all(bool b) { return b; }
template <class T>
MSL_OVERLOAD void swap(thread T& a, thread T& b) {
  T t = a;
  a = b;
  b = t;
}
}  // namespace metal
