// What a row's teacher becomes before it is compared with the student. Included by cuda/row_loss.cuh.
//
//     is_label()            the row's target follows from its label alone
//     read(chunk, raw, t)   a chunk's logits as the source deals them out, from those of the teacher
//
// The sums of a softmax do not notice an exchange or a permutation of its classes: those of the teacher as it is serve.

// As it is, or absent.
template <class A, class Source>
struct RowTarget {
  template <class Team, class Storage>
  KD_DEVICE RowTarget(const RowLoss&, const RowScales<A>&, int64_t, const RowPosition&, Team&, Storage&) {}

  static KD_DEVICE bool is_label() { return std::is_same_v<Source, LabelTarget>; }

  static KD_DEVICE void read(Chunk, const A (&raw)[chunk_classes], A (&t)[chunk_classes]) {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) t[e] = raw[e];
  }
};

// The largest number of a row, the lowest of equals: its class, and what stands beside it in another row.
template <class A>
struct RunningLargest {
  A value = -HUGE_VALF;
  int64_t index = -1;  // of no class yet
  A beside = 0;

  KD_DEVICE void add(int64_t c, A x, A other) {
    if (index >= 0 && !(x > value)) return;
    value = x;
    index = c;
    beside = other;
  }

  // That of all threads. Class numbers are exact in A: there are at most most_classes.
  template <class Team>
  KD_DEVICE void merge(int64_t classes, Team& team) {
    A highest[1] = {value};
    team.max(highest);
    A lowest[1] = {-static_cast<A>(index >= 0 && value == highest[0] ? index : classes)};
    team.max(lowest);
    const int64_t winner = static_cast<int64_t>(-lowest[0]);
    A from_winner[1] = {winner == index ? beside : A(0)};
    team.sum(from_winner);
    value = highest[0];
    index = winner < classes ? winner : 0;  // a row of NaN has no largest class
    beside = from_winner[0];
  }
};

// The teacher's largest class, and the logit of the label (0 for none). All threads take part.
template <class A, class Team, class Storage>
KD_DEVICE RunningLargest<A> largest_class(const RowLoss& problem, bool computed, int64_t label,
                                          const RowPosition& position, Team& team, Storage& storage,
                                          A* label_logit) {
  RunningLargest<A> largest;
  A of_label[1] = {0};
  storage.for_each(problem, position, computed, team,
                   [&](Chunk chunk, const A(&)[chunk_classes], const A(&t)[chunk_classes]) {
                     KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
                       const int c = chunk.of(e);
                       if (c >= position.classes) continue;
                       largest.add(c, t[e], A(0));
                       if (c == label) of_label[0] = t[e];
                     }
                   });
  largest.merge(problem.classes, team);
  team.sum(of_label);
  *label_logit = of_label[0];
  return largest;
}

template <class A>
struct RowTarget<A, AdjustedTarget> {
  int one = -1, other = -1;  // classes that change places
  A logit_of_one = 0, logit_of_other = 0;
  bool replaced = false;

  template <class Team, class Storage>
  KD_DEVICE RowTarget(const RowLoss& problem, const RowScales<A>& scales, int64_t, const RowPosition& position,
                      Team& team, Storage& storage) {
    if (problem.adjustment == Adjustment::none) return;
    const bool repairs = scales.has_soft && scales.has_label && !scales.bad_label;
    const auto largest = largest_class<A>(problem, repairs, scales.label, position, team, storage, &logit_of_other);
    if (!repairs || largest.index == scales.label) return;
    replaced = problem.adjustment == Adjustment::label;
    one = static_cast<int>(largest.index);
    logit_of_one = largest.value;
    other = static_cast<int>(scales.label);
  }

  KD_DEVICE bool is_label() const { return replaced; }

  KD_DEVICE void read(Chunk chunk, const A (&raw)[chunk_classes], A (&t)[chunk_classes]) const {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      t[e] = c == one ? logit_of_other : c == other ? logit_of_one : raw[e];
    }
  }
};

template <class A>
struct RowTarget<A, PermutedTarget> {
  const RowLoss& problem;
  const RowPosition& position;
  int64_t row;
  bool computed;
  int64_t kept = 0;

  template <class Team, class Storage>
  KD_DEVICE RowTarget(const RowLoss& problem, const RowScales<A>& scales, int64_t row, const RowPosition& position,
                      Team& team, Storage& storage)
      : problem(problem), position(position), row(row), computed(scales.has_soft) {
    A no_label;
    if (!problem.permutation.of_rows) kept = largest_class<A>(problem, computed, -1, position, team, storage, &no_label).index;
  }

  static KD_DEVICE bool is_label() { return false; }

  // Gathered from global memory, where the row has just been read.
  KD_DEVICE void read(Chunk chunk, const A (&)[chunk_classes], A (&t)[chunk_classes]) const {
    int64_t from[chunk_classes];
    if (problem.permutation.of_rows) given(chunk, from);
    else drawn(chunk, from);
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      t[e] = NAN;  // a number that is no class makes its row NaN: a device cannot raise
      if (computed && from[e] >= 0 && from[e] < problem.classes) t[e] = read_class<A>(problem.teacher, position, from[e]);
    }
  }

 private:
  KD_DEVICE void given(Chunk chunk, int64_t (&from)[chunk_classes]) const {
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      from[e] = -1;
      if (computed && c < position.classes) from[e] = problem.permutation.of_rows[row * problem.classes + c];
    }
  }

  KD_DEVICE void drawn(Chunk chunk, int64_t (&from)[chunk_classes]) const {
    const Shuffle shuffle(problem.permutation.seed, static_cast<uint64_t>(row), problem.classes - 1);
    uint32_t ranks[chunk_classes];
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      const bool moves = c < position.classes && c != kept;
      ranks[e] = moves ? static_cast<uint32_t>(rank_of(c, kept)) : 0u;
    }
    for (int number = 0; number < shuffle.rounds; ++number) {
      const Shuffle::Round round = shuffle.round(number);
      KD_UNROLL for (int e = 0; e < chunk_classes; ++e) ranks[e] = shuffle.moved(ranks[e], round);
    }
    KD_UNROLL for (int e = 0; e < chunk_classes; ++e) {
      const int c = chunk.of(e);
      from[e] = c == kept ? kept : c < position.classes ? class_of(ranks[e], kept) : -1;
    }
  }
};
