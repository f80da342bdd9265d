"""A strict parser of CSV as a state machine, compiled by Numba.

`scan` advances a state (STATE_SIZE,) int64 over blocks of bytes. The state counts what `csv_dialects` needs
to compare dialects: rows, columns, quoted cells, escapes, and the place and kind of the first error.
"""

from numba import njit

# modes of the state machine
CELL_START, UNQUOTED, QUOTED, AFTER_QUOTE, ESCAPED, WRAPPED = range(6)
# indices into its state
(
    MODE,
    RUN,  # number of escape characters just before this byte
    AFTER_RETURN,
    COLUMNS,
    EXPECTED,
    ROWS,
    LINE,
    RECORD_LINE,
    RECORD_BYTES,
    LONGEST,
    OPENED_LINE,
    HEADER_END,
    OFFSET,
    ERROR,
    ERROR_LINE,
    ERROR_COLUMNS,
    QUOTED_CELLS,
    SINGLE_QUOTED_CELLS,
    SINGLE_QUOTED_LINE,
    ESCAPES_LINE,  # the first line with an escaped quote
    LONE_ESCAPES,  # runs of odd length that escape no quote
    PAIRED_ESCAPES,  # runs of even length that precede no quote
    STATE_SIZE,
) = range(23)
WRONG_COLUMNS, AFTER_CLOSING, NEVER_CLOSED, TOO_LONG = range(1, 5)
NOTHING = -1


@njit(nogil=True, cache=True)
def scan(block, state, delimiter, quote, escape, longest):  # type: ignore[no-untyped-def]
    """Advance the state over a block of bytes; it stops at the first error."""
    for place in range(len(block)):
        if state[ERROR]:
            return
        byte = block[place]
        state[OFFSET] += 1
        if byte == 10 and state[AFTER_RETURN]:  # the second byte of \r\n
            state[AFTER_RETURN] = 0
            if state[EXPECTED] and state[HEADER_END] == state[OFFSET] - 1:
                state[HEADER_END] += 1
            continue
        newline = byte == 10 or byte == 13
        state[AFTER_RETURN] = byte == 13
        mode = state[MODE]
        if state[RECORD_BYTES] == 0:
            state[RECORD_LINE] = state[LINE]
            if newline and mode == CELL_START and state[COLUMNS] == 0:  # empty lines are ignored
                state[LINE] += 1
                continue
        state[RECORD_BYTES] += 1
        if state[RECORD_BYTES] > longest:
            state[ERROR] = TOO_LONG
            state[ERROR_LINE] = state[OPENED_LINE] if mode == QUOTED else state[RECORD_LINE]
            return
        run = state[RUN]
        state[RUN] = run + 1 if byte == escape and quote >= 0 and mode != CELL_START else 0
        ends_run = run > 0 and byte != escape
        if mode == QUOTED:
            if byte == quote:
                if run % 2:
                    if not state[ESCAPES_LINE]:
                        state[ESCAPES_LINE] = state[LINE]
                else:
                    state[MODE] = AFTER_QUOTE
            elif ends_run:
                if run % 2:
                    state[LONE_ESCAPES] += 1
                else:
                    state[PAIRED_ESCAPES] += 1
        elif mode == AFTER_QUOTE and byte == quote:
            state[MODE] = QUOTED
        elif mode == ESCAPED:
            state[MODE] = UNQUOTED
        elif byte == delimiter or newline:
            if mode == UNQUOTED and ends_run:
                if run % 2:
                    state[LONE_ESCAPES] += 1
                else:
                    state[PAIRED_ESCAPES] += 1
            state[MODE] = CELL_START
            state[COLUMNS] += 1
            if newline:
                if not state[EXPECTED]:
                    state[EXPECTED] = state[COLUMNS]
                    state[HEADER_END] = state[OFFSET]
                end_row(state)
        elif mode == AFTER_QUOTE:
            state[ERROR] = AFTER_CLOSING
            state[ERROR_LINE] = state[LINE]
        elif mode == CELL_START:
            if byte == quote:
                state[MODE] = QUOTED
                state[OPENED_LINE] = state[LINE]
                state[QUOTED_CELLS] += 1
            elif byte == escape and quote < 0:
                state[MODE] = ESCAPED
            else:
                state[MODE] = UNQUOTED
                state[RUN] = byte == escape
                if byte == 39:  # a single quote
                    state[SINGLE_QUOTED_CELLS] += 1
                    if not state[SINGLE_QUOTED_LINE]:
                        state[SINGLE_QUOTED_LINE] = state[LINE]
        elif byte == escape and quote < 0:
            state[MODE] = ESCAPED
        elif byte == quote and run % 2:
            if not state[ESCAPES_LINE]:
                state[ESCAPES_LINE] = state[LINE]
        elif ends_run:
            if run % 2:
                state[LONE_ESCAPES] += 1
            else:
                state[PAIRED_ESCAPES] += 1
        state[LINE] += newline


@njit(nogil=True, cache=True)
def end_row(state):  # type: ignore[no-untyped-def]
    """Count a row, and record an error if its number of columns differs from the header's."""
    if state[COLUMNS] != state[EXPECTED]:
        state[ERROR] = WRONG_COLUMNS
        state[ERROR_LINE] = state[RECORD_LINE]
        state[ERROR_COLUMNS] = state[COLUMNS]
    state[ROWS] += 1
    state[LONGEST] = max(state[LONGEST], state[RECORD_BYTES])
    state[COLUMNS] = 0
    state[RECORD_BYTES] = 0


@njit(nogil=True, cache=True)
def finish(state):  # type: ignore[no-untyped-def]
    """Handle the end of the file, which ends a row but not a quoted cell."""
    if state[ERROR]:
        return
    if state[MODE] == QUOTED:
        state[ERROR] = NEVER_CLOSED
        state[ERROR_LINE] = state[OPENED_LINE]
    elif state[RECORD_BYTES]:
        state[COLUMNS] += 1
        if not state[EXPECTED]:
            state[EXPECTED] = state[COLUMNS]
            state[HEADER_END] = state[OFFSET]
        end_row(state)
