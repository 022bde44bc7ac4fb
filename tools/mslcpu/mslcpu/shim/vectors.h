// Vector traits and constructors. The rewriter turns `float4(a, b)` into `__make<float4>(a, b)`.
#pragma once
namespace metal {
template <class T>
struct __vector {
  typedef T element;
  static constexpr __constant int size = 1;
  static constexpr __constant bool is = false;
};
template <class T, int N>
struct __vector<T __attribute__((ext_vector_type(N)))> {
  typedef T element;
  static constexpr __constant int size = N;
  static constexpr __constant bool is = true;
};
template <class T>
using make_scalar_t = typename __vector<T>::element;
template <class T>
struct make_scalar {
  typedef make_scalar_t<T> type;
};
template <class T>
struct vec_size {
  static constexpr __constant int value = __vector<T>::size;
};

// Bytes of the smallest part of a T that is written on its own.
template <class T>
constexpr __constant uint __granule =
    is_arithmetic_v<typename __vector<T>::element> ? sizeof(typename __vector<T>::element) : 1;

template <int I, class V>
MSL_OVERLOAD void __fill(__private V&) {}
template <int I, class V, class A, class... Rest>
MSL_OVERLOAD void __fill(__private V& v, A a, Rest... rest) {
  typedef typename __vector<V>::element E;
  if constexpr (__vector<A>::is) {
    for (int k = 0; k < __vector<A>::size; k++) v[I + k] = (E)a[k];
  } else {
    v[I] = (E)a;
  }
  __fill<I + __vector<A>::size>(v, rest...);
}

template <class V>
MSL_OVERLOAD V __make() {
  return V(0);
}
template <class V, class A>
MSL_OVERLOAD V __make(A a) {
  if constexpr (!__vector<V>::is) {
    return V(a);
  } else if constexpr (__vector<A>::is) {
    static_assert(__vector<A>::size == __vector<V>::size, "vector size mismatch");
    return __builtin_convertvector(a, V);
  } else if constexpr (is_arithmetic_v<A>) {
    return V((typename __vector<V>::element)a);
  } else {
    return (V)a;
  }
}
template <class V, class A, class B, class... Rest>
MSL_OVERLOAD V __make(A a, B b, Rest... rest) {
  if constexpr (!__vector<V>::is) {
    return V(a, b, rest...);
  } else {
    constexpr int given = __vector<A>::size + __vector<B>::size + (0 + ... + __vector<Rest>::size);
    static_assert(given == __vector<V>::size, "wrong number of vector constructor elements");
    V v;
    __fill<0>(v, a, b, rest...);
    return v;
  }
}

template <class To, class From>
MSL_OVERLOAD To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between sizes");
  return __builtin_bit_cast(To, from);
}

template <class T, size_t N>
struct array {
  T element[N];
  constexpr thread T& operator[](size_t i) thread { return element[i]; }
  constexpr const thread T& operator[](size_t i) const thread { return element[i]; }
  device T& operator[](size_t i) device { return element[i]; }
  const device T& operator[](size_t i) const device { return element[i]; }
  threadgroup T& operator[](size_t i) threadgroup { return element[i]; }
  const threadgroup T& operator[](size_t i) const threadgroup { return element[i]; }
  constexpr const constant T& operator[](size_t i) const constant { return element[i]; }
  constexpr size_t size() const { return N; }
};
}  // namespace metal
