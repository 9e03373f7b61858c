// Package groupcommit runs the writes of a process on one SQLite connection, and commits
// the writes that wait together.
//
// A write is a list of [Statement] values that is known before it starts. Its conditions are
// part of its SQL.
package groupcommit
