package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// A user is one row of the table user, without the credentials.
type user struct {
	id          int64
	username    string
	email       string
	role        role
	disabled    bool
	createdAt   int64 // in Unix seconds, like all times in the store
	updatedAt   int64
	lastLoginAt int64 // 0: never
	version     int64 // grows with each change that a client can see; the ETag

	emailVerifiedAt int64  // 0: the address is not verified
	pending         bool   // the user cannot log in until an admin approves it
	pendingEmail    string // becomes email when the user confirms it; empty: none
	service         bool   // the user has only API keys: no password, and email is empty
}

// The password hash of a service user, which matches no password, and the beginning of the
// text that it has in the place of an address, which no address can be.
const (
	serviceHash  = "service"
	serviceEmail = "service:"
)

// userValues and (*userRow).Scan list a user's columns in the same order.
const userValues = `
		user.id,
		user.username,
		iif(user.pending_email = '', user.email, user.email || ' ' || user.pending_email),
		user.role,
		(user.disabled <> 0) + 2 * (user.pending <> 0) + 4 * (user.pending_email <> '') + 8 * (user.service <> 0),
		user.created_at,
		user.updated_at,
		user.last_login_at,
		user.version,
		user.email_verified_at`

// userColumns is one column of JSON: parsing it costs less than what the driver does for
// each of eleven columns (its name, its declared type, a lock, a value on the heap). The
// driver copies the name for each query: without AS, it is the entire expression.
const userColumns = ` json_array(` + userValues + `) AS v`

// A userRow scans json_array(userValues, …), with an integer for each of more.
type userRow struct {
	*user
	more []*int64
}

// Scan implements sql.Scanner for a row of userColumns.
func (u *user) Scan(row any) error { return userRow{user: u}.Scan(row) }

// Scan implements sql.Scanner.
func (u userRow) Scan(row any) error {
	text, _ := row.(string)
	a := jsonArray{rest: text}
	u.id = a.integer()
	u.username = a.text()
	u.email = a.text()
	u.role = role(a.text())
	flags := a.integer() // one element for all, because each costs a page about 2 % of its time
	u.disabled, u.pending, u.service = flags&1 != 0, flags&2 != 0, flags&8 != 0
	u.pendingEmail = ""
	if i := strings.LastIndexByte(u.email, ' '); flags&4 != 0 && i >= 0 {
		u.email, u.pendingEmail = u.email[:i], u.email[i+1:]
	}
	if u.service {
		u.email = "" // the column holds serviceEmail and random text
	}
	u.createdAt = a.integer()
	u.updatedAt = a.integer()
	u.lastLoginAt = a.integer()
	u.version = a.integer()
	u.emailVerifiedAt = a.integer()
	for _, n := range u.more {
		*n = a.integer()
	}
	return a.err
}

// columns returns the destinations of userColumns followed by more.
func (u *user) columns(more ...any) []any { return append([]any{u}, more...) }

// A jsonArray is the unread part of an array from SQLite's json_array, which has no
// white space.
type jsonArray struct {
	rest string
	err  error // the first error
}

// next removes and returns the next element, or returns "" at the end.
func (a *jsonArray) next() string {
	if a.rest == "" {
		return ""
	}
	rest, end, quoted := a.rest[1:], 0, false // without the [ or , before the element
	for ; end < len(rest) && (quoted || rest[end] != ',' && rest[end] != ']'); end++ {
		if c := rest[end]; c == '"' {
			quoted = !quoted
		} else if c == '\\' {
			end++
		}
	}
	end = min(end, len(rest))
	a.rest = rest[end:]
	return rest[:end]
}

func (a *jsonArray) integer() int64 {
	n, err := strconv.ParseInt(a.next(), 10, 64)
	if err != nil && a.err == nil {
		a.err = err
	}
	return n
}

func (a *jsonArray) text() string {
	element := a.next()
	if n := len(element); n >= 2 && element[0] == '"' && strings.IndexByte(element, '\\') < 0 {
		return element[1 : n-1]
	}
	return a.unescape(element) // a function of its own: its result is allocated
}

func (a *jsonArray) unescape(element string) (s string) {
	if err := json.Unmarshal([]byte(element), &s); err != nil && a.err == nil {
		a.err = err
	}
	return s
}

// user returns the user with this id, or errUserNotFound.
func (s *store) user(id int64) (u user, err error) {
	err = s.read(`SELECT`+userColumns+` FROM user WHERE id = ?`, errUserNotFound, u.columns(), id)
	return u, err
}

// checkFree returns errUsernameTaken or errEmailTaken if a user other than the id
// except has the username or the address, in any case. An empty text is free: it is not a
// name, and adopted users can have it.
func (s *store) checkFree(username, email string, except int64) error {
	var name, address bool
	err := s.read(`
		SELECT EXISTS (SELECT 1 FROM user WHERE username = ?1 COLLATE NOCASE AND username <> '' AND id <> ?3),
		       EXISTS (SELECT 1 FROM user WHERE email = ?2 COLLATE NOCASE AND email <> '' AND id <> ?3)`,
		errStorage, []any{&name, &address}, username, email, except)
	switch {
	case err != nil:
		return err
	case name:
		return errUsernameTaken
	case address:
		return errEmailTaken
	}
	return nil
}

// takenError returns errUsernameTaken or errEmailTaken for an errDuplicate. It
// returns other errors unchanged.
func (s *store) takenError(err error, username, email string, except int64) error {
	if !errors.Is(err, errDuplicate) {
		return err
	}
	if taken := s.checkFree(username, email, except); taken != nil {
		return taken
	}
	return &storageError{"writing", errors.New("the user that had the name was just deleted or renamed")}
}

// A filter narrows a list of users. The zero filter matches every user.
type filter struct {
	role     role  // empty: any
	disabled *bool // nil: either
	pending  *bool // nil: either
}

// users calls f for at most limit users with ids above after, in id order. It
// reuses f's argument for the next row.
func (s *store) users(ctx context.Context, after int64, limit int, only filter, f func(*user)) error {
	var u user
	const (
		from  = `SELECT` + userColumns + ` FROM user WHERE `
		page  = `id > ?1 ORDER BY id LIMIT ?2`
		match = `(?3 = '' OR role = ?3) AND (?4 IS NULL OR disabled = ?4) AND (?5 IS NULL OR pending = ?5) AND ` + page
	)
	// SQLite uses a partial index only if the query repeats its condition.
	query := from + match
	switch {
	case only == (filter{}):
		return s.eachRow(ctx, from+page, u.columns(), func() { f(&u) }, after, limit)
	case only.role == admin:
		query = from + `role = 'admin' AND ` + match
	case only.disabled != nil && *only.disabled:
		query = from + `disabled = 1 AND ` + match
	case only.pending != nil && *only.pending:
		query = from + `pending = 1 AND ` + match
	}
	return s.eachRow(ctx, query, u.columns(), func() { f(&u) }, after, limit, only.role, only.disabled, only.pending)
}

// search calls f for at most limit users whose username begins with prefix, in any
// case, in the order of usernames. If byEmail is true, e-mail addresses count too.
// search reads at most limit entries of each index.
func (s *store) search(ctx context.Context, prefix string, byEmail bool, limit int, f func(*user)) error {
	var u user
	// Each string with the prefix sorts before the prefix followed by the last code point.
	// The column service would not be in the index.
	const byName = `SELECT id FROM user INDEXED BY user_username
		WHERE username >= ?1 COLLATE NOCASE AND username < ?1 || char(0x10FFFF) COLLATE NOCASE
		ORDER BY username COLLATE NOCASE LIMIT ?2`
	const byAddress = `SELECT id FROM user INDEXED BY user_email
		WHERE email >= ?1 COLLATE NOCASE AND email < ?1 || char(0x10FFFF) COLLATE NOCASE AND email NOT GLOB 'service:*'
		ORDER BY email COLLATE NOCASE LIMIT ?2`
	query := `SELECT` + userColumns + ` FROM user WHERE id IN (SELECT id FROM (` + byName + `)`
	if byEmail {
		query += ` UNION SELECT id FROM (` + byAddress + `)`
	}
	query += `) ORDER BY username COLLATE NOCASE LIMIT ?2`
	return s.eachRow(ctx, query, u.columns(), func() { f(&u) }, prefix, limit)
}

// addUser adds a user for a caller and sets u's id, times and version. The statements in then
// belong to the same write. It returns errSessionEnded, errForbidden, errUsernameTaken or
// errEmailTaken.
func (s *store) addUser(ctx context.Context, by caller, u *user, hash string, now int64, then ...statement) error {
	created := event{at: now, kind: userCreated}
	if u.role == admin {
		created.changes = "role=admin"
	} else if u.pending {
		created.changes = "pending=true"
	}
	email := u.email
	if u.service {
		created.changes = strings.TrimPrefix(created.changes+",service=true", ",")
		email, hash = serviceEmail+rand.Text(), serviceHash
	}
	record := created.by(by)
	record.Query = insertNewUserEvent
	err := s.write(ctx, append([]statement{
		{
			// The Flask app can still add users, and it does not move the counter.
			Query: `
				INSERT INTO user (id, username, email, password_hash, role, disabled, pending, service, created_at, updated_at)
				SELECT
					1 + max(user_id, (SELECT coalesce(max(id), 0) FROM user)),
					@username, @email, @hash, @role, @disabled, @pending, @service, @now, @now
				FROM counter
				WHERE @caller = 'stranger' AND @role = 'member' OR ` + mayChange + `
				RETURNING` + userColumns,
			Args: by.with(args{
				{"id", nil}, // not a user, so mayChange only accepts admins
				{"username", u.username}, {"email", email}, {"hash", hash},
				{"role", u.role}, {"disabled", u.disabled}, {"pending", u.pending}, {"service", u.service}, {"now", now},
			}),
			Scan:   u.columns(),
			IfNone: errNotApplied,
		},
		{Query: moveCounter},
		record,
	}, then...)...)
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, 0), errForbidden)
	}
	return s.takenError(err, u.username, email, 0)
}

// otherAdmin is the condition that an active admin other than the current row exists, who
// can log in.
const otherAdmin = `EXISTS (
	SELECT 1 FROM user AS other WHERE other.role = 'admin' AND other.disabled = 0 AND other.pending = 0 AND other.service = 0 AND other.id <> user.id)`

// hasAdmin reports whether an active admin who can log in exists. It reads only the index of admins.
func (s *store) hasAdmin() (exists bool, err error) {
	err = s.read(`SELECT EXISTS (SELECT 1 FROM user WHERE role = 'admin' AND disabled = 0 AND pending = 0 AND service = 0)`,
		errStorage, []any{&exists})
	return exists, err
}

// A change holds new values for a user's columns. nil leaves a column unchanged.
type change struct {
	username *string
	email    *string
	hash     *string
	role     *role
	disabled *bool
	verified *bool // whether the address, also a new one, is verified

	pendingEmail *string    // the address that the user must confirm; "": none
	notice       *statement // of the change; it runs first, because it reads the address before the change
}

// describe returns the changed fields, separated by commas, and the SET list of the change.
// It includes the new value only of role, disabled and email_verified, which neither
// identify a person nor are secret. SQLite would also write the indexes of a column that
// is set to its own value.
func (c *change) describe() (names, set string) {
	add := func(name, assignment string) {
		if names != "" {
			names += ","
		}
		names += name
		set += assignment + ", "
	}
	if c.username != nil {
		add("username", `username = @username`)
	}
	if c.email != nil {
		add("email", `email = @email`)
	}
	if c.hash != nil {
		add("password", `password_hash = @hash`)
	}
	if c.role != nil {
		add("role="+string(*c.role), `role = @role`)
	}
	if c.disabled != nil {
		add("disabled="+strconv.FormatBool(*c.disabled), `disabled = @disabled`)
	}
	if c.verified != nil {
		add("email_verified="+strconv.FormatBool(*c.verified), `email_verified_at = iif(@verified, @now, 0)`)
	} else if c.email != nil {
		set += `email_verified_at = 0, `
	}
	if c.hash != nil || c.disabled != nil {
		set += `auth_stamp = auth_stamp + 1, `
	}
	if c.pendingEmail != nil {
		add("pending_email", `pending_email = @pending_email`)
	} else if c.hash != nil || c.email != nil || c.disabled != nil {
		set += `pending_email = '', `
	}
	return names, set
}

// endCodes deletes the codes of the user @id except those that undo a change of its address,
// and the reset codes that the user made for others: a thief may have made them.
const endCodes = `DELETE FROM user_code WHERE user_id = @id AND kind <> 'uu' OR created_by = @id AND kind = 'ul'`

// endKeys deletes the keys of the user @id.
const endKeys = `DELETE FROM user_key WHERE user_id = @id`

// endPendingFactor deletes the factor that the user @id has begun to add.
const endPendingFactor = `DELETE FROM user_totp_pending WHERE user_id = @id`

// endMade returns the statements that delete the codes and the invitations that the user @id
// made and, unless it is an admin now, its API keys with adminScope: they must not outlive
// its right to them.
func endMade(values args) []statement {
	return []statement{
		{Query: `DELETE FROM user_code WHERE created_by = @id`, Args: values},
		{Query: `DELETE FROM user_invitation WHERE created_by = @id`, Args: values},
		{Query: endKeys + ` AND scope = 'admin' AND NOT EXISTS (SELECT 1 FROM user WHERE id = @id AND role = 'admin')`, Args: values},
	}
}

// endFactor are the statements that delete the factor of the deleted user @id.
func endFactor(values args) []statement {
	return []statement{
		{Query: `DELETE FROM user_totp WHERE user_id = @id`, Args: values},
		{Query: endPendingFactor, Args: values},
		{Query: `DELETE FROM user_recovery_code WHERE user_id = @id`, Args: values},
	}
}

// updateUser changes a user for a caller and returns the new user. Unless version
// is 0, it must equal the user's version. A new password ends the user's sessions
// except the caller's; disabling the user ends all of them; and both, or a new
// address, end the user's codes, the reset links that it made, and an unconfirmed change of
// its address. A new role, and disabling the user, also end the invitations that it made. If
// another user sets the address or disables the user, earlier changes of the address cannot be
// undone any more. A new address is not verified unless c says so.
// The statements in then belong to the same write.
// It returns an error of authorizationError, errUserNotFound, errVersion,
// errLastAdmin, errUsernameTaken or errEmailTaken.
func (s *store) updateUser(ctx context.Context, by caller, id int64, c change, version, now int64, then ...statement) (u user, err error) {
	values := by.with(args{
		{"id", id}, {"version", version}, {"now", now},
		{"username", c.username}, {"email", c.email}, {"hash", c.hash}, {"role", c.role}, {"disabled", c.disabled},
		{"verified", c.verified}, {"pending_email", c.pendingEmail}, {"undone", 0},
	})
	names, set := c.describe()
	condition := ""
	if c.hash != nil || c.email != nil || c.verified != nil || c.pendingEmail != nil {
		condition = ` AND service = 0`
	}
	if c.role != nil || c.disabled != nil {
		condition += `
				AND (role <> 'admin' OR disabled <> 0 OR service <> 0
					OR (coalesce(@role, role) = 'admin' AND coalesce(@disabled, disabled) = 0)
					OR ` + otherAdmin + `)`
	}
	var statements []statement
	if c.notice != nil {
		statements = append(statements, *c.notice)
	}
	statements = append(statements, statement{
		Query: `
			UPDATE user SET ` + set + `updated_at = @now, version = version + 1
			WHERE id = @id
				AND (@version = 0 OR version = @version)
				AND ` + mayChange + condition + `
			RETURNING` + userColumns,
		Args:   values,
		Scan:   u.columns(),
		IfNone: errNotApplied,
	})
	if c.disabled != nil && *c.disabled {
		statements = append(statements,
			statement{Query: `DELETE FROM session WHERE user_id = @id`, Args: values},
			statement{Query: endKeys, Args: values})
	} else if c.hash != nil {
		statements = append(statements, statement{Query: `DELETE FROM session WHERE user_id = @id AND id <> @session`, Args: values})
	}
	if c.hash != nil || c.disabled != nil { // a thief may have begun to add its own factor
		statements = append(statements, statement{Query: endPendingFactor, Args: values})
	}
	if c.hash != nil || c.email != nil || c.disabled != nil {
		statements = append(statements, statement{Query: endCodes, Args: values})
	}
	if c.role != nil || c.disabled != nil {
		statements = append(statements, endMade(values)...)
	}
	if (c.email != nil || c.disabled != nil) && by.user != id {
		statements = append(statements, endUndo(values)...)
	}
	statements = append(statements, then...)
	statements = append(statements, event{at: now, kind: userChanged, userID: id, changes: names}.by(by))
	err = s.write(ctx, statements...)
	if errors.Is(err, errNotApplied) {
		return user{}, s.notAppliedError(by, id, version)
	}
	return u, s.takenError(err, *cmp.Or(c.username, new("")), *cmp.Or(c.email, new("")), id)
}

// deleteUser deletes a user, its sessions, its codes and what it made, for a caller. The
// version and the errors are those of updateUser. It also returns errReferenced if a row of another
// program's table refers to the user.
func (s *store) deleteUser(ctx context.Context, by caller, id, version, now int64) error {
	values := by.with(args{{"id", id}, {"version", version}, {"now", now}})
	statements := append([]statement{
		{
			Query: `
				DELETE FROM user
				WHERE id = @id
					AND (@version = 0 OR version = @version)
					AND ` + mayChange + `
					AND (role <> 'admin' OR disabled <> 0 OR service <> 0 OR ` + otherAdmin + `)`,
			Args:   values,
			IfNone: errNotApplied,
		},
		{Query: `DELETE FROM session WHERE user_id = @id`, Args: values},
		{Query: `DELETE FROM user_code WHERE user_id = @id`, Args: values},
		{Query: endKeys, Args: values},
		event{at: now, kind: userDeleted, userID: id}.by(by),
	}, append(append(endMade(values), endMails(values)...), endFactor(values)...)...)
	err := s.write(ctx, statements...)
	if errors.Is(err, errNotApplied) {
		return s.notAppliedError(by, id, version)
	}
	return err
}

// notAppliedError returns why a change of a user did not apply. It checks the
// caller's session first, then its rights, the user, and the user's version.
func (s *store) notAppliedError(by caller, id, version int64) error {
	if err := s.authorizationError(by, id); err != nil {
		return err
	}
	u, err := s.user(id)
	switch {
	case err != nil:
		return err
	case version != 0 && u.version != version:
		return errVersion
	case u.service:
		return errServiceUser
	}
	return errLastAdmin
}
