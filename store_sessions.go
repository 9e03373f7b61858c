package main

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
)

// maxSessions bounds the sessions of a user. One more ends the oldest.
const maxSessions = 100

// A session is one login of a user.
type session struct {
	id          int64
	userID      int64
	createdAt   int64
	lastUsedAt  int64
	expiresAt   int64
	lifetime    int64  // the most seconds from createdAt to expiresAt; 0: no limit; not in the table
	address     string // of the client, at the login or the last refresh
	userAgent   string
	generation  int64
	refreshHash []byte
	rotatedAt   int64
	rekeyedAt   int64 // the first generation whose access tokens are valid; see addRekeying
	factor      bool  // the user proved its second factor
	codesLeft   int64 // the user's recovery codes; startSession sets it if factor; not in the table
}

// sessionColumns and (*session).columns list the columns in the same order.
const sessionColumns = `
	session.id,
	session.user_id,
	session.created_at,
	session.last_used_at,
	session.expires_at,
	session.address,
	session.user_agent,
	session.generation,
	session.refresh_hash,
	session.rotated_at,
	session.rekeyed_at,
	session.factor`

func (x *session) columns() []any {
	return []any{
		&x.id,
		&x.userID,
		&x.createdAt,
		&x.lastUsedAt,
		&x.expiresAt,
		&x.address,
		&x.userAgent,
		&x.generation,
		&x.refreshHash,
		&x.rotatedAt,
		&x.rekeyedAt,
		&x.factor,
	}
}

// startSession stores a new session of a user, sets x.id, and returns the key that
// signs its access token. It ends the user's oldest sessions beyond maxSessions. If
// newHash is not empty, it replaces the user's outdated hash of the same password. It uses
// up the code of p. It returns errOTPUsed if the code was used before, and errCredentials if
// the user is disabled, pending or a service user, if its auth_stamp differs from stamp, which
// the caller read before it checked the password, or if it has a second factor and p does not
// prove it.
// The statements in then belong to the same write.
func (s *store) startSession(ctx context.Context, x *session, stamp int64, newHash string, p provenFactor, then ...statement) (key keyRow, err error) {
	x.factor = p.proven()
	values := args{
		{"user", x.userID}, {"stamp", stamp}, {"new_hash", newHash}, {"most", maxSessions}, {"factor", x.factor},
		{"now", x.createdAt}, {"expires", x.expiresAt}, {"lifetime", x.lifetime},
		{"address", x.address}, {"agent", x.userAgent}, {"refresh", x.refreshHash},
	}
	record := event{at: x.createdAt, kind: loggedIn, actorID: x.userID, userID: x.userID, address: x.address}.statement()
	record.Query = insertNewSessionEvent
	statements := append(p.statements(x.userID, x.address, x.createdAt), []statement{
		{
			Query: `
				UPDATE user SET
					last_login_at = @now,
					password_hash = coalesce(nullif(@new_hash, ''), password_hash)
				WHERE id = @user AND auth_stamp = @stamp AND disabled = 0 AND pending = 0 AND service = 0 AND ` + hasFactor,
			Args:   values,
			IfNone: errCredentials,
		},
		{
			Query: `
				INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent, refresh_hash, rotated_at, factor)
				VALUES (@user, @now, @now, iif(@lifetime = 0, @expires, min(@expires, @now + @lifetime)), @address, @agent, @refresh, @now, @factor)
				RETURNING id`,
			Args: values,
			Scan: []any{&x.id},
		},
		record,
		{
			Query: `
				DELETE FROM session WHERE user_id = @user AND id <= (
					SELECT id FROM session WHERE user_id = @user ORDER BY id DESC LIMIT 1 OFFSET @most)`,
			Args: values,
		},
		key.selectNewest(),
	}...)
	if x.factor {
		statements = append(statements, statement{Query: selectCodesLeft, Args: values, Scan: []any{&x.codesLeft}})
	}
	err = s.write(ctx, append(statements, then...)...)
	return key, err
}

// A rekeying invalidates the other tokens of a session whose user changes the password: a
// thief may hold tokens of the same session.
type rekeying struct {
	session session // the client and the times, and the hash of the new refresh token
	kept    string  // the jti of the request's access token, which stays valid
	key     keyRow  // signs the new access token
}

// statements returns the statements of the rekeying. They set r.key, and the generation and
// the factor of r.session.
func (r *rekeying) statements() []statement {
	return []statement{
		{
			Query: `
				UPDATE session SET
					generation = generation + 1,
					refresh_hash = @refresh,
					rotated_at = @now,
					last_used_at = @now,
					expires_at = ` + endOfSession + `,
					address = @address,
					user_agent = @agent,
					grace_uses = 0,
					rekeyed_at = generation + 1,
					kept_jti = @kept
				WHERE id = @id
				RETURNING generation, factor`,
			Args: args{
				{"id", r.session.id}, {"refresh", r.session.refreshHash}, {"kept", r.kept},
				{"now", r.session.createdAt}, {"expires", r.session.expiresAt}, {"lifetime", r.session.lifetime},
				{"address", r.session.address}, {"agent", r.session.userAgent},
			},
			Scan: []any{&r.session.generation, &r.session.factor},
		},
		r.key.selectNewest(),
	}
}

// newTokenID returns the id of the token with a jti, which begins with the generation. The
// jti of a token of an earlier build has none, so its generation is 0.
func newTokenID(jti string) tokenID {
	text, _, _ := strings.Cut(jti, "-")
	generation, err := strconv.ParseInt(text, 10, 64)
	if err != nil || generation < 0 || strconv.FormatInt(generation, 10) != text {
		generation = 0
	}
	return tokenID{jti, generation}
}

// principal returns the user of an access token's session, when the session was last used,
// and whether the user proved its second factor in it. It returns errSessionEnded if the
// session has ended, was re-keyed without keeping the token, or was restored from a backup
// older than the token, or if its user is deleted or disabled. It returns errBadToken if kid names a key of the database
// whose tokens are no longer valid. kid is empty for a key of the configuration.
func (s *store) principal(sid int64, token tokenID, kid string, now int64) (u user, lastUsedAt int64, factor bool, err error) {
	var validKey, proven int64
	err = s.read(`SELECT json_array(`+userValues+`, session.last_used_at, session.factor,
			?3 = '' OR EXISTS (SELECT 1 FROM signing_key WHERE kid = ?3 AND `+keyIsValid+`)) AS v
		FROM session JOIN user ON user.id = session.user_id
		WHERE session.id = ?1 AND (session.rekeyed_at <= ?4 OR session.kept_jti = ?5) AND ?4 <= session.generation
			AND session.expires_at > ?2 AND user.disabled = 0`,
		errSessionEnded, []any{userRow{&u, []*int64{&lastUsedAt, &proven, &validKey}}}, sid, now, kid, token.generation, token.jti)
	if err == nil && validKey == 0 {
		err = errBadToken
	}
	return u, lastUsedAt, proven != 0, err
}

// touchEvery is after how many seconds touch records the use of a session again, so that
// most requests need no write.
const touchEvery = 60

// touch records that a session is in use. It does not wait for the write.
func (s *store) touch(sid, now int64) {
	s.writer.WriteLater(statement{
		Query: `UPDATE session SET last_used_at = @now WHERE id = @id AND last_used_at <= @now - @every`,
		Args:  args{{"id", sid}, {"now", now}, {"every", touchEvery}},
	})
}

// session returns a session, or errSessionEnded.
func (s *store) session(sid int64) (x session, err error) {
	err = s.read(`SELECT`+sessionColumns+` FROM session WHERE id = ?`, errSessionEnded, x.columns(), sid)
	return x, err
}

// sessionsOf calls f for each session of a user that is still valid, the oldest
// first.
func (s *store) sessionsOf(ctx context.Context, userID, now int64, f func(*session)) error {
	var x session
	return s.eachRow(ctx, `SELECT`+sessionColumns+` FROM session WHERE user_id = ? AND expires_at > ? ORDER BY id`,
		x.columns(), func() { f(&x) }, userID, now)
}

// loginsFrom reports whether a session of a user, or a login among its last 200 events, is from
// an address that matches (known), and whether the user has any session or login (exist). It
// reads the sessions first, because they are fewer. A user with 200 events has logged in, even
// if none of these is a login.
func (s *store) loginsFrom(ctx context.Context, userID int64, matches func(address string) bool) (known, exist bool, err error) {
	var address string
	see := func() { known, exist = known || matches(address), true }
	err = s.eachRow(ctx, `SELECT address FROM session WHERE user_id = ?1`, []any{&address}, see, userID)
	if err == nil && !known {
		n, login := 0, false
		err = s.eachRow(ctx, `SELECT address, type = 'login' FROM event WHERE user_id = ?1 ORDER BY id DESC LIMIT 200`,
			[]any{&address, &login}, func() {
				if n++; login {
					see()
				}
			}, userID)
		exist = exist || n == 200
	}
	return known, exist, err
}

// endOfSession is when a session expires after a refresh: at @expires, but at most
// @lifetime seconds after its start, unless @lifetime is 0.
const endOfSession = `iif(@lifetime = 0, @expires, min(@expires, created_at + @lifetime))`

// rotate replaces the refresh token of a session by the one that x describes, sets
// x.userID and x.factor, and returns the key that signs the access token. It returns
// errNotApplied if the session has ended or expired or has lived for x's lifetime,
// if its user is disabled, or if the current token does not have the hash and the
// generation before x's.
func (s *store) rotate(ctx context.Context, x *session, hash []byte, now int64) (key keyRow, err error) {
	err = s.write(ctx,
		statement{
			Query: `
				UPDATE session SET
					generation = @generation,
					refresh_hash = @new_hash,
					rotated_at = @now,
					last_used_at = @now,
					expires_at = ` + endOfSession + `,
					address = @address,
					user_agent = @agent,
					grace_uses = 0
				WHERE id = @id AND generation = @generation - 1 AND refresh_hash = @old_hash
					AND expires_at > @now AND ` + endOfSession + ` > @now
					AND EXISTS (SELECT 1 FROM user WHERE user.id = session.user_id AND user.disabled = 0)
				RETURNING user_id, factor`,
			Args: args{
				{"id", x.id}, {"generation", x.generation}, {"old_hash", hash}, {"new_hash", x.refreshHash},
				{"now", now}, {"expires", x.expiresAt}, {"lifetime", x.lifetime},
				{"address", x.address}, {"agent", x.userAgent},
			},
			Scan:   []any{&x.userID, &x.factor},
			IfNone: errNotApplied,
		},
		key.selectNewest())
	return key, err
}

// repeatRotation counts a repeated use of the token before the live token of x, and
// returns the key that signs the access token. It returns errNotApplied if that token was
// already repeated most times, or if the session has another live token or has ended.
func (s *store) repeatRotation(ctx context.Context, x *session, most int) (key keyRow, err error) {
	err = s.write(ctx,
		statement{
			Query: `
				UPDATE session SET grace_uses = grace_uses + 1
				WHERE id = @id AND generation = @generation AND refresh_hash = @hash AND grace_uses < @most`,
			Args:   args{{"id", x.id}, {"generation", x.generation}, {"hash", x.refreshHash}, {"most", most}},
			IfNone: errNotApplied,
		},
		key.selectNewest())
	return key, err
}

// endSession ends a session of a user for a caller. It returns errSessionEnded,
// errForbidden, or errSessionNotFound if the user does not have this session.
func (s *store) endSession(ctx context.Context, by caller, userID, sid, now int64) error {
	err := s.write(ctx,
		statement{
			Query:  `DELETE FROM session WHERE user_id = @id AND id = @ended AND ` + mayChange,
			Args:   by.with(args{{"id", userID}, {"ended", sid}}),
			IfNone: errNotApplied,
		},
		event{at: now, kind: sessionEnded, userID: userID, sessionID: sid}.by(by))
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, userID), errSessionNotFound)
	}
	return err
}

// endSessions ends all sessions of a user, if it has any, for a caller. It returns
// errSessionEnded or errForbidden.
func (s *store) endSessions(ctx context.Context, by caller, userID, now int64) error {
	err := s.write(ctx,
		statement{
			Query:  `DELETE FROM session WHERE user_id = @id AND ` + mayChange,
			Args:   by.with(args{{"id", userID}}),
			IfNone: errNotApplied,
		},
		event{at: now, kind: sessionsEnded, userID: userID}.by(by))
	if errors.Is(err, errNotApplied) {
		return s.authorizationError(by, userID)
	}
	return err
}

// endReused ends a session, unless it has already ended, because the client at the
// address sent a refresh token of it that was used before.
func (s *store) endReused(ctx context.Context, userID, sid int64, address string, now int64) error {
	err := s.write(ctx,
		statement{
			Query:  `DELETE FROM session WHERE id = @id`,
			Args:   args{{"id", sid}},
			IfNone: errNotApplied,
		},
		event{at: now, kind: tokenReused, userID: userID, sessionID: sid, address: address}.statement())
	if errors.Is(err, errNotApplied) {
		err = nil
	}
	return err
}

// sweep reads sweepSize sessions after an id and deletes the expired ones. It also deletes
// the keys whose tokens have all expired. It returns the id to continue from, or 0 after
// the last session. The small steps replace an index on expires_at, which each refresh
// would have to update.
func (s *store) sweep(ctx context.Context, after, now int64) (next int64, err error) {
	var n, expired, oldKeys int
	err = s.read(`
		SELECT count(*), coalesce(max(id), 0), count(*) FILTER (WHERE expires_at <= ?2),
			(SELECT count(*) FROM signing_key WHERE NOT `+keyIsValid+`)
		FROM (SELECT id, expires_at FROM session WHERE id > ?1 ORDER BY id LIMIT ?3)`,
		errStorage, []any{&n, &next, &expired, &oldKeys}, after, now, sweepSize)
	if err == nil && expired > 0 {
		err = s.write(ctx, statement{
			Query: `DELETE FROM session WHERE id > @after AND id <= @last AND expires_at <= @now`,
			Args:  args{{"after", after}, {"last", next}, {"now", now}},
		})
	}
	if err == nil && oldKeys > 0 {
		err = s.write(ctx, statement{
			Query: `DELETE FROM signing_key WHERE retired_at > 0 AND ` + keyEnd + ` <= @now`,
			Args:  args{{"now", now}},
		})
	}
	if n < sweepSize {
		next = 0
	}
	return next, err
}
