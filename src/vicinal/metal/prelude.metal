// Rows touch boxes of columns. Rows are outputs and columns the keys they see; for the gradients of keys and values it is
// the other way round. The window rule itself, with all of its options, is in the tables that the host makes from it.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// Where hosts keep the geometry, and whether their arrays start where vectors of four may.
#ifndef SPACE
#define SPACE constant
#define ALIGNED 1
#endif
#define UNROLL _Pragma("clang loop unroll(full)")

// All int32, in the order of Geometry in geometry.py.
template <int ND>
struct Geometry {
  int rows[ND];
  int columns[ND];
  int row_step[ND];         // between the rows of one dilation group
  int column_step[ND];
  int row_table[ND];        // where the entries of the axis' rows start, one a row
  int output_table[ND];     // where those of outputs start
  int tile_table[ND];       // where the entries of the axis' tiles start, one a tile
  int tiles[ND];
  int tile_bits[ND];        // log2 of a tile's rows
  int relative_step[ND];    // of the relative position, from one column to the next
  int relative_stride[ND];  // of the relative position bias
  int slot_stride[ND];      // of the slots of a window
  int batch;
  int heads;
  int kv_heads;
  int extra;                // additional tokens
  int row_count;
  int column_count;
  int relative_count;
  int slot_count;
};

// Entry of a row, on one axis.
//   x first column it touches   y how many it touches   z place of the first in its dilation group
//   w relative position of the first
// Entry of a tile: x first row   y first column any row touches   z place of that column   w how many columns rows touch

// Flat index `index` over `extents`, as one index an axis.
template <int ND>
METAL_FUNC void unflatten(int index, const SPACE int* extents, thread int* at) {
  UNROLL
  for (int d = ND - 1; d > 0; d--) {
    at[d] = index % extents[d];
    index /= extents[d];
  }
  at[0] = index;
}

// Visits the box of columns that one row touches, last axis fastest.
template <int ND>
struct Walk {
  int4 entry[ND];
  int place[ND];
  bool more;

  Walk(const SPACE Geometry<ND>& g, const device int4* table, int row) {
    int at[ND];
    unflatten<ND>(row, g.rows, at);
    more = true;
    UNROLL
    for (int d = 0; d < ND; d++) {
      entry[d] = table[g.row_table[d] + at[d]];
      place[d] = 0;
      more = more && entry[d].y > 0;
    }
  }

  void next() {
    bool carry = true;
    UNROLL
    for (int d = ND - 1; d >= 0; d--) {
      place[d] += carry ? 1 : 0;
      const bool over = place[d] == entry[d].y;
      place[d] = over ? 0 : place[d];
      carry = carry && over;
    }
    more = !carry;
  }

  int column(const SPACE Geometry<ND>& g) {
    int index = 0;
    UNROLL
    for (int d = 0; d < ND; d++) index = index * g.columns[d] + entry[d].x + place[d] * g.column_step[d];
    return index;
  }

  // Index into the relative position bias of one head.
  int relative(const SPACE Geometry<ND>& g) {
    int index = 0;
    UNROLL
    for (int d = 0; d < ND; d++) index += (entry[d].w + place[d] * g.relative_step[d]) * g.relative_stride[d];
    return index;
  }

  // Slot of the pair in the window of its output, where rows are outputs.
  int slot(const SPACE Geometry<ND>& g) {
    int index = 0;
    UNROLL
    for (int d = 0; d < ND; d++) index += place[d] * g.slot_stride[d];
    return index;
  }

  // The same where rows are keys and columns outputs.
  int slot_of_output(const SPACE Geometry<ND>& g, const device int4* table) {
    int index = 0;
    UNROLL
    for (int d = 0; d < ND; d++) {
      const int first = table[g.output_table[d] + entry[d].x + place[d] * g.column_step[d]].w;
      index += (entry[d].w + place[d] * g.relative_step[d] - first) * g.slot_stride[d];
    }
    return index;
  }
};

// Where the vector of one token and head starts in `[batch, tokens, heads, dim]`.
METAL_FUNC long vector_at(long batch, int tokens, int token, int heads, int head, int dim) {
  return ((batch * tokens + token) * heads + head) * dim;
}

template <typename T, int D>
METAL_FUNC float product(const device T* x, const device T* y) {
  float sum = 0;
  for (int d = 0; d < D; d++) sum = fma(float(x[d]), float(y[d]), sum);
  return sum;
}
