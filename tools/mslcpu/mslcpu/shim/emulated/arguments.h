// What entry functions need to call a kernel: the type of each parameter, and its value.
#pragma once
template <class F>
struct __parameters;
template <class R, class... A>
struct __parameters<R(A...)> {
  template <int I>
  using at = __type_pack_element<I, A...>;
};
template <class T>
struct __argument {
  static T position(uint which) {
    if constexpr (metal::__vector<T>::is) {
      T v;
      for (int i = 0; i < metal::__vector<T>::size; i++)
        v[i] = (typename metal::__vector<T>::element)__msl_position(which, i);
      return v;
    } else {
      return (T)__msl_position(which, 0);
    }
  }
};
template <class T>
struct __argument<const T> : __argument<T> {};
#define MSL_BUFFER(SPACE)                                                         \
  template <class T>                                                              \
  struct __argument<SPACE T*> {                                                   \
    static SPACE T* buffer(uint index) { return (SPACE T*)__msl_buffer(index); }  \
  };                                                                              \
  template <class T>                                                              \
  struct __argument<SPACE T&> {                                                   \
    static SPACE T& buffer(uint index) { return *(SPACE T*)__msl_buffer(index); } \
  };
MSL_BUFFER(__global)
MSL_BUFFER(__constant)
