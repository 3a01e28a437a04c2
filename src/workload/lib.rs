//! Load, recorded histories and checkers.
