// metal::type_traits.
#pragma once
namespace metal {
typedef ::size_t size_t;
typedef ::uint uint;
typedef ::bfloat bfloat;
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

template <class T, T v>
struct integral_constant {
  static constexpr __constant T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <class T>
struct remove_addrspace {
  typedef T type;
};
template <class T>
struct remove_addrspace<__private T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__global T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__local T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__constant T> {
  typedef T type;
};
template <class T>
struct remove_addrspace<__generic T> {
  typedef T type;
};
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T>
struct remove_const {
  typedef T type;
};
template <class T>
struct remove_const<const T> {
  typedef T type;
};
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
struct remove_volatile {
  typedef T type;
};
template <class T>
struct remove_volatile<volatile T> {
  typedef T type;
};
template <class T>
struct remove_cv {
  typedef remove_const_t<typename remove_volatile<T>::type> type;
};
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
struct remove_reference {
  typedef T type;
};
template <class T>
struct remove_reference<T&> {
  typedef T type;
};
template <class T>
struct remove_reference<T&&> {
  typedef T type;
};
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
struct remove_pointer {
  typedef T type;
};
template <class T>
struct remove_pointer<T*> {
  typedef T type;
};
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
struct decay {
  typedef remove_cv_t<remove_addrspace_t<remove_reference_t<T>>> type;
};
template <class T>
using decay_t = typename decay<T>::type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr __constant bool is_same_v = is_same<A, B>::value;
template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class F>
struct conditional {
  typedef T type;
};
template <class T, class F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

template <class T, class... U>
constexpr __constant bool __one_of = (is_same_v<T, U> || ...);
template <class T>
constexpr __constant bool is_integral_v =
    __one_of<decay_t<T>, bool, char, signed char, uchar, short, ushort, int, uint, long, ulong>;
template <class T>
constexpr __constant bool is_floating_point_v = __one_of<decay_t<T>, float, half, bfloat>;
template <class T>
constexpr __constant bool is_arithmetic_v = is_integral_v<T> || is_floating_point_v<T>;
template <class T>
constexpr __constant bool is_signed_v = T(-1) < T(0);
template <class T>
constexpr __constant bool is_unsigned_v = is_integral_v<T> && !is_signed_v<T>;
template <class T>
struct is_integral : bool_constant<is_integral_v<T>> {};
template <class T>
struct is_floating_point : bool_constant<is_floating_point_v<T>> {};
template <class T>
struct is_arithmetic : bool_constant<is_arithmetic_v<T>> {};
template <class T>
struct is_signed : bool_constant<is_signed_v<T>> {};
template <class T>
struct is_unsigned : bool_constant<is_unsigned_v<T>> {};
template <class T>
struct is_pointer : false_type {};
template <class T>
struct is_pointer<T*> : true_type {};
template <class A, class B>
struct is_convertible : bool_constant<__is_convertible_to(A, B)> {};
template <class A, class B>
constexpr __constant bool is_convertible_v = is_convertible<A, B>::value;
template <class... B>
struct disjunction : bool_constant<(B::value || ...)> {};
template <class... B>
struct conjunction : bool_constant<(B::value && ...)> {};
template <class B>
struct negation : bool_constant<!B::value> {};

template <class T>
struct make_unsigned {
  typedef T type;
};
template <>
struct make_unsigned<char> {
  typedef uchar type;
};
template <>
struct make_unsigned<short> {
  typedef ushort type;
};
template <>
struct make_unsigned<int> {
  typedef uint type;
};
template <>
struct make_unsigned<long> {
  typedef ulong type;
};
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;
template <class T>
__private T& declval();
}  // namespace metal
