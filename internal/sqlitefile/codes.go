package sqlitefile

import (
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// code returns SQLite's extended result code of an error, or 0 if it has none.
// The low byte is the primary code (https://www.sqlite.org/rescode.html).
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}

// IsDamaged reports whether err says that a file is not a database, or is corrupt.
func IsDamaged(err error) bool {
	primary := code(err) & 0xff
	return primary == sqlite3.SQLITE_CORRUPT || primary == sqlite3.SQLITE_NOTADB
}

// isUnfinished reports whether err says that a database opened read-only has a
// transaction that must be rolled back first.
func isUnfinished(err error) bool { return code(err) == sqlite3.SQLITE_READONLY_ROLLBACK }

// IsBusy reports whether err says that another process holds the lock.
func IsBusy(err error) bool { return code(err)&0xff == sqlite3.SQLITE_BUSY }

// IsIOError reports whether err says that the system failed to read, write or sync.
func IsIOError(err error) bool { return code(err)&0xff == sqlite3.SQLITE_IOERR }

// IsConstraint reports whether err says that a statement broke a constraint or had
// a value of the wrong type. SQLite then undoes only this statement.
func IsConstraint(err error) bool {
	primary := code(err) & 0xff
	return primary == sqlite3.SQLITE_CONSTRAINT || primary == sqlite3.SQLITE_MISMATCH
}

// IsDuplicate reports whether err is a failed UNIQUE constraint.
func IsDuplicate(err error) bool {
	return code(err) == sqlite3.SQLITE_CONSTRAINT_UNIQUE || code(err) == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// IsForeignKey reports whether err is a failed FOREIGN KEY constraint.
func IsForeignKey(err error) bool { return code(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }
