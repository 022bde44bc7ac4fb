// Tiles: one threadgroup of four SIMD-groups takes 32 rows, eight a SIMD-group, and streams the box of columns that any of
// them touches through threadgroup memory, BK columns at a time.
constant constexpr int SIMDGROUPS = 4;
constant constexpr int TILE_THREADS = 32 * SIMDGROUPS;

template <typename T>
using Matrix = simdgroup_matrix<T, 8, 8>;

// Threadgroup memory is 32 KB; a few hundred bytes of it hold the chunk's tokens.
template <typename T, int D, int DV>
constexpr int chunk() {
  return 16 * (D + DV + 48) * int(sizeof(T)) <= 31 * 1024 ? 16 : 8;
}

// Elements of a row in threadgroup memory: whole matrices, and 16 bytes that spread rows over banks.
template <typename T>
constexpr int stride_of(int dim) {
  return (dim + 7) / 8 * 8 + 16 / int(sizeof(T));
}

// Vectors that divide rows of `dim`. Each starts where its type may, or at any element where ALIGNED is 0.
constexpr int vector_of(int dim) { return dim % 4 == 0 ? 4 : dim % 2 == 0 ? 2 : 1; }
template <typename T, int N>
struct alignas(sizeof(T) * (ALIGNED ? N : 1)) Packet {
  T elements[N];
};

// Places on all axes in one number: a field an axis, whose top bit tells whether a subtraction stayed in its field.
template <int ND>
constexpr int field_bits() {
  return 32 / ND;
}
template <int ND>
constexpr uint guards() {
  uint bits = 0;
  for (int d = 0; d < ND; d++) bits |= 1u << (field_bits<ND>() * (d + 1) - 1);
  return bits;
}

// The document of a tile, which one lane looks up for all.
template <int ND, bool DOCUMENTS>
METAL_FUNC Document<ND> document_of_tile(const SPACE Geometry<ND>* geometries, const device int4* table, uint3 group,
                                         uint lane) {
  if (!DOCUMENTS) return Document<ND>(geometries, group.x, group.z);
  int number = 0;
  int4 entry = int4(0);
  if (lane == 0) {
    number = document_of(table, geometries->batch, group.x);
    entry = table[number];
  }
  return Document<ND>(geometries, group.x, simd_broadcast(number, ushort(0)), simd_broadcast(entry, ushort(0)));
}

template <int ND>
struct Tile {
  int4 entry[ND];
  int columns;

  Tile(const SPACE Geometry<ND>& g, const device int4* table, int index, uint lane) {
    int at[ND];
    unflatten<ND>(index, g.tiles, at);
    columns = 1;
    UNROLL
    for (int d = 0; d < ND; d++) {
      // One lane asks memory for what all of them need.
      int4 read = int4(0);
      if (lane == uint(d)) read = table[g.tile_table[d] + at[d]];
      entry[d] = simd_broadcast(read, ushort(d));
      columns *= entry[d].w;
    }
  }
};

// Row and first column of a lane's two elements of a matrix.
METAL_FUNC int lane_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
METAL_FUNC int lane_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

// One row of a tile: its token, and the places of the columns it touches.
template <int ND>
struct Row {
  int real = 1;
  int token = 0;
  int relative = 0;  // its part of the relative position
  int slot = 0;      // and of the slot
  uint low = 0;   // lowest places
  uint high = 0;  // highest places, all guards set, and the guards of the minuend

  // Each of the first eight lanes reads a row of the SIMD-group, and hands it to the four that hold it in matrices.
  Row(const SPACE Geometry<ND>& g, const device int4* table, const thread Tile<ND>& tile, uint simd, uint lane,
      bool inverse) {
    if (lane < 8) read(g, table, tile, simd * 8 + lane, inverse);
    const ushort from = lane_row(lane);
    real = simd_shuffle(real, from);
    token = simd_shuffle(token, from);
    relative = simd_shuffle(relative, from);
    slot = simd_shuffle(slot, from);
    low = simd_shuffle(low, from);
    high = simd_shuffle(high, from);
  }

  void read(const SPACE Geometry<ND>& g, const device int4* table, const thread Tile<ND>& tile, int index,
            bool inverse) {
    int at[ND];
    UNROLL
    for (int d = ND - 1; d >= 0; d--) {
      at[d] = index & ((1 << g.tile_bits[d]) - 1);
      index >>= g.tile_bits[d];
    }
    UNROLL
    for (int d = 0; d < ND; d++) {
      const int on_axis = tile.entry[d].x + at[d] * g.row_step[d];
      real = on_axis < g.rows[d] ? real : 0;
      // Rows past the end repeat the first, and are not stored.
      const int row = on_axis < g.rows[d] ? on_axis : tile.entry[d].x;
      const int4 entry = table[g.row_table[d] + row];
      token = token * g.row_room[d] + row;
      const int relative_on_axis = entry.w - entry.z * g.relative_step[d];
      relative += relative_on_axis * g.relative_stride[d];
      // A slot is the relative position less that of the output's first key.
      slot += (relative_on_axis - (inverse ? 0 : entry.w)) * g.slot_stride[d];
      // A row that touches nothing gets a lowest place above its highest.
      const int first = entry.y > 0 ? entry.z - tile.entry[d].z : 1;
      const int last = entry.y > 0 ? first + entry.y - 1 : 0;
      low |= uint(first) << (field_bits<ND>() * d);
      high |= uint(last) << (field_bits<ND>() * d);
    }
    high += 2 * guards<ND>();
  }

  bool touches(uint place) const { return ((place - low) & (high - place) & guards<ND>()) == guards<ND>(); }
};

// What the threads of a threadgroup share about a chunk of columns.
struct Column {
  uint place;    // with guards; past the end it is a place that no row touches
  int token;     // -1 past the end, -2 - i for additional token i
  int relative;  // its part of the relative position
  int slot;      // and of the slot
};

template <int ND>
METAL_FUNC Column column_at(const SPACE Geometry<ND>& g, const device int4* table, const thread Tile<ND>& tile,
                            int index, bool inverse) {
  Column column = {~0u, tile.columns - 2 - index, 0, 0};
  if (index >= tile.columns) {
    column.token = index < tile.columns + g.extra ? column.token : -1;
    return column;
  }
  column.place = guards<ND>();
  int at[ND];
  UNROLL
  for (int d = ND - 1; d > 0; d--) {
    at[d] = index % tile.entry[d].w;
    index /= tile.entry[d].w;
  }
  at[0] = index;
  column.token = 0;
  UNROLL
  for (int d = 0; d < ND; d++) {
    column.place |= uint(at[d]) << (field_bits<ND>() * d);
    const int on_axis = tile.entry[d].y + at[d] * g.column_step[d];
    const int relative_on_axis = (tile.entry[d].z + at[d]) * g.relative_step[d];
    column.token = column.token * g.column_room[d] + on_axis;
    column.relative += relative_on_axis * g.relative_stride[d];
    column.slot += (relative_on_axis - (inverse ? table[g.output_table[d] + on_axis].w : 0)) * g.slot_stride[d];
  }
  return column;
}

// Vectors of the chunk's columns, into threadgroup memory; what is not there is zero.
template <typename T, int D, int BK>
METAL_FUNC void stage(threadgroup T* to, const device T* from, const device T* extra, const threadgroup int* token,
                      int token_stride, uint thread_index) {
  constexpr int N = vector_of(D), LD = stride_of<T>(D), VECTORS = (D + 7) / 8 * 8 / N;
  typedef Packet<T, N> V;
  for (int e = thread_index; e < BK * VECTORS; e += TILE_THREADS) {
    const int column = e / VECTORS, d = e % VECTORS * N, at = token[column];
    V value = {};
    if (at != -1 && (D % 8 == 0 || d < D)) {
      const device T* row = at >= 0 ? from + long(at) * token_stride : extra + long(-2 - at) * token_stride;
      value = *reinterpret_cast<const device V*>(row + d);
    }
    *reinterpret_cast<threadgroup V*>(to + column * LD + d) = value;
  }
}

// Vectors of the rows of a SIMD-group, as matrices.
template <typename T, int D>
METAL_FUNC void load_rows(thread Matrix<T>* to, const device T* row, int column) {
  constexpr int PARTS = (D + 7) / 8;
  UNROLL
  for (int i = 0; i < PARTS; i++) {
    UNROLL
    for (int c = 0; c < 2; c++) {
      const int d = i * 8 + column + c;
      to[i].thread_elements()[c] = D % 8 == 0 || d < D ? row[d] : T(0);
    }
  }
}

template <typename T, int D>
METAL_FUNC void store_rows(device T* row, const thread Matrix<float>* from, int column, float factor) {
  constexpr int PARTS = (D + 7) / 8;
  UNROLL
  for (int i = 0; i < PARTS; i++) {
    UNROLL
    for (int c = 0; c < 2; c++) {
      const int d = i * 8 + column + c;
      if (D % 8 == 0 || d < D) row[d] = T(from[i].thread_elements()[c] * factor);
    }
  }
}

// scores = rows * columns^T
template <typename T, int D, int BK>
METAL_FUNC void multiply(thread Matrix<float>* scores, const thread Matrix<T>* rows, const threadgroup T* columns) {
  constexpr int PARTS = (D + 7) / 8, LD = stride_of<T>(D);
  UNROLL
  for (int j = 0; j < BK / 8; j++) {
    scores[j] = Matrix<float>(0.0f);
    UNROLL
    for (int i = 0; i < PARTS; i++) {
      Matrix<T> part;
      simdgroup_load(part, columns + j * 8 * LD + i * 8, LD, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(scores[j], rows[i], part, scores[j]);
    }
  }
}

// sums += weights * columns
template <typename T, int D, int BK>
METAL_FUNC void accumulate(thread Matrix<float>* sums, const thread Matrix<T>* weights, const threadgroup T* columns) {
  constexpr int PARTS = (D + 7) / 8, LD = stride_of<T>(D);
  UNROLL
  for (int i = 0; i < PARTS; i++) {
    UNROLL
    for (int j = 0; j < BK / 8; j++) {
      Matrix<T> part;
      simdgroup_load(part, columns + j * 8 * LD + i * 8, LD);
      simdgroup_multiply_accumulate(sums[i], weights[j], part, sums[i]);
    }
  }
}
