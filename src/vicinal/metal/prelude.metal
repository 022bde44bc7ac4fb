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
  int row_room[ND];         // extents of what the rows lie in, of which they may be the first corner
  int column_room[ND];
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
  int batch;                // or documents
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

// Token of a row, counted from the first of its document.
template <int ND>
METAL_FUNC int token_of(const SPACE Geometry<ND>& g, int row) {
  int at[ND], token = 0;
  unflatten<ND>(row, g.rows, at);
  UNROLL
  for (int d = 0; d < ND; d++) token = token * g.row_room[d] + at[d];
  return token;
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
    for (int d = 0; d < ND; d++) index = index * g.column_room[d] + entry[d].x + place[d] * g.column_step[d];
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

// One entry of the batch. With DOCUMENTS, entries have shapes of their own, which the table starts with: a list in the
// order of tiles, then one in the order of rows, each with one more entry at its end.
//   x first tile or row, in the grid   y geometry   z where rows start   w where columns start
template <int ND>
struct Document {
  const SPACE Geometry<ND>* geometry;
  int index;     // of the tile or row inside of it
  long rows;     // tokens before its own
  long columns;
  long extras;

  Document(const SPACE Geometry<ND>* only, int tile_or_row, uint batch)
      : geometry(only),
        index(tile_or_row),
        rows(long(batch) * only->row_count),
        columns(long(batch) * only->column_count),
        extras(long(batch) * only->extra) {}

  Document(const SPACE Geometry<ND>* geometries, int position, int number, int4 entry)
      : geometry(geometries + entry.y),
        index(position - entry.x),
        rows(entry.z),
        columns(entry.w),
        extras(long(number) * geometry->extra) {}
};

METAL_FUNC int document_of(const device int4* entries, int count, int position) {
  int low = 0;
  for (int high = count; high - low > 1;) {
    const int middle = (low + high) / 2;
    if (entries[middle].x <= position) low = middle;
    else high = middle;
  }
  return low;
}

// The document of a row; each thread has its own.
template <int ND, bool DOCUMENTS>
METAL_FUNC Document<ND> document_of_row(const SPACE Geometry<ND>* geometries, const device int4* table, int position,
                                        uint batch) {
  if (!DOCUMENTS) return Document<ND>(geometries, position, batch);
  const int count = geometries->batch;
  const int number = document_of(table + count + 1, count, position);
  return Document<ND>(geometries, position, number, table[count + 1 + number]);
}

// Where the vector of one head of a token starts in `[tokens, heads, dim]`.
METAL_FUNC long vector_at(long before, int token, int heads, int head, int dim) {
  return ((before + token) * heads + head) * dim;
}

template <typename T, int D>
METAL_FUNC float product(const device T* x, const device T* y) {
  float sum = 0;
  for (int d = 0; d < D; d++) sum = fma(float(x[d]), float(y[d]), sum);
  return sum;
}
