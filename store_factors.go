package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"userd/internal/otp"
	"userd/internal/seal"
	"userd/internal/sqlitefile"
	"userd/internal/validate"
)

// A factor is the TOTP secret of a user, as one row of the table user_totp: the second
// factor of its logins. The zero factor means that the user has none.
type factor struct {
	sealed      string // the secret, encrypted under a key of a seal.Ring
	confirmedAt int64
	lastStep    int64 // the step of the last code that was accepted
	failures    int64 // wrong codes since the last right one
}

// factorColumns and (*factor).columns list the columns of a LEFT JOIN in the same order.
const factorColumns = `
	coalesce(user_totp.secret, x'') AS f1,
	coalesce(user_totp.confirmed_at, 0) AS f2,
	coalesce(user_totp.last_step, 0) AS f3,
	coalesce(user_totp.failures, 0) AS f4`

func (f *factor) columns() []any {
	return []any{&f.sealed, &f.confirmedAt, &f.lastStep, &f.failures}
}

// exists reports whether the user has the factor.
func (f *factor) exists() bool { return f.sealed != "" }

// credentials are the stored values that a login checks.
type credentials struct {
	hash   string // of the password; empty: the user does not exist
	stamp  int64  // auth_stamp, which grows with each change of the password, a factor or disabled
	factor factor
}

// credentialColumns and (*credentials).columns list the columns of withFactor in the same
// order.
const (
	credentialColumns = `user.password_hash, user.auth_stamp,` + factorColumns
	withFactor        = `user LEFT JOIN user_totp ON user_totp.user_id = user.id`
)

func (c *credentials) columns() []any { return append([]any{&c.hash, &c.stamp}, c.factor.columns()...) }

// userByLogin returns the user whose username or e-mail address is login, in any
// case, and its credentials; or errUserNotFound. A username takes precedence,
// because an adopted username can equal the address of another user.
// Spaces around login do not matter, unless an adopted name has them.
func (s *store) userByLogin(login string) (u user, c credentials, err error) {
	u, c, err = s.userByExactLogin(login)
	if trimmed := validate.TrimName(login); errors.Is(err, errUserNotFound) && trimmed != login {
		return s.userByExactLogin(trimmed)
	}
	return u, c, err
}

func (s *store) userByExactLogin(login string) (u user, c credentials, err error) {
	var rank int
	err = s.read(`
		SELECT`+userColumns+`, 0 AS rank, `+credentialColumns+` FROM `+withFactor+` WHERE username = ?1 COLLATE NOCASE
		UNION ALL
		SELECT`+userColumns+`, 1 AS rank, `+credentialColumns+` FROM `+withFactor+` WHERE email = ?1 COLLATE NOCASE AND service = 0
		ORDER BY rank LIMIT 1`, errUserNotFound, append(u.columns(&rank), c.columns()...), login)
	return u, c, err
}

// credentials returns the credentials of a user, or errUserNotFound.
func (s *store) credentials(id int64) (c credentials, err error) {
	err = s.read(`SELECT `+credentialColumns+` FROM `+withFactor+` WHERE id = ?`, errUserNotFound, c.columns(), id)
	return c, err
}

// upgradeHash replaces the outdated hash of a user's password by one of the same password,
// unless the user's auth_stamp has changed.
func (s *store) upgradeHash(ctx context.Context, id, stamp int64, hash string) error {
	return s.write(ctx, statement{
		Query: `UPDATE user SET password_hash = @hash WHERE id = @id AND auth_stamp = @stamp`,
		Args:  args{{"hash", hash}, {"id", id}, {"stamp", stamp}},
	})
}

// export calls f with each user, its password hash and its sealed TOTP secret, in id order,
// as of one moment.
func (s *store) export(ctx context.Context, f func(u *user, hash string, sealed []byte)) error {
	var u user
	var c credentials
	return s.eachRow(ctx, `SELECT`+userColumns+`, `+credentialColumns+` FROM `+withFactor+` ORDER BY id`,
		u.columns(c.columns()...), func() { f(&u, c.hash, []byte(c.factor.sealed)) })
}

// maxWrongCodes is how many wrong codes in a row a factor allows. After that it accepts
// only a recovery code, until a login with one. NIST SP 800-63B-4 section 3.2.2 allows no
// more than 100.
const maxWrongCodes = 100

// locked reports whether the factor accepts only a recovery code.
func (f *factor) locked() bool { return f.failures >= maxWrongCodes }

// A provenFactor is the code with which a user proved its second factor. The zero
// provenFactor proves nothing: only the password was checked.
type provenFactor struct {
	step     int64  // of a TOTP code; 0: none
	recovery []byte // the hash of a recovery code; nil: none
}

// proven reports whether there is a code.
func (p *provenFactor) proven() bool { return p.step != 0 || p.recovery != nil }

// statements returns the statements that use up the code. They must run first in the write that
// the code allows, which returns errOTPUsed if the code was used meanwhile. A TOTP code counts as
// used if a code of the same step or of a later one was used: so a code works once, even if
// several processes check it concurrently.
func (p *provenFactor) statements(userID int64, address string, now int64) []statement {
	values := args{{"user", userID}, {"step", p.step}, {"recovery", p.recovery}, {"most", maxWrongCodes}}
	switch {
	case p.step != 0:
		return []statement{{
			Query: `
				UPDATE user_totp SET last_step = @step, failures = 0
				WHERE user_id = @user AND last_step < @step AND failures < @most`,
			Args:   values,
			IfNone: errOTPUsed,
		}}
	case p.recovery != nil:
		return []statement{
			{Query: `DELETE FROM user_recovery_code WHERE hash = @recovery AND user_id = @user`, Args: values, IfNone: errOTPUsed},
			{Query: `UPDATE user_totp SET failures = 0 WHERE user_id = @user`, Args: values},
			event{at: now, kind: recoveryCodeUsed, actorID: userID, userID: userID, address: address}.statement(),
		}
	}
	return nil
}

// hasFactor is the condition that the user has a second factor if @factor is 1, and none if it
// is 0. It is part of each write that starts a session or sets a password by a link: the user may
// have added a factor after the check.
const hasFactor = `@factor = EXISTS (SELECT 1 FROM user_totp WHERE user_totp.user_id = user.id)`

// useFactor uses up a code that proves an act other than a login, such as a deletion. It returns
// errOTPUsed if the code was used meanwhile.
func (s *store) useFactor(ctx context.Context, userID int64, p provenFactor, address string, now int64) error {
	return s.write(ctx, p.statements(userID, address, now)...)
}

// countWrongCode counts a wrong code of a user's factor and returns the number of wrong
// codes in a row, or 0 if the user no longer has a factor.
func (s *store) countWrongCode(ctx context.Context, userID int64) (failures int64, err error) {
	err = s.write(ctx, statement{
		Query: `UPDATE user_totp SET failures = failures + 1 WHERE user_id = @user RETURNING failures`,
		Args:  args{{"user", userID}},
		Scan:  []any{&failures},
	})
	return failures, err
}

// hasRecoveryCode reports whether a recovery code of a user has this hash.
func (s *store) hasRecoveryCode(userID int64, hash []byte) (has bool, err error) {
	err = s.read(`SELECT EXISTS (SELECT 1 FROM user_recovery_code WHERE hash = ?1 AND user_id = ?2)`, errStorage, []any{&has}, hash, userID)
	return has, err
}

// countRecoveryCodes returns how many recovery codes a user has.
func (s *store) countRecoveryCodes(userID int64) (n int64, err error) {
	err = s.read(selectCodesLeft, errStorage, []any{&n}, userID)
	return n, err
}

const selectCodesLeft = `SELECT count(*) FROM user_recovery_code WHERE user_id = @user`

// addPendingFactor stores the sealed secret of a new factor of a user, for a caller. It replaces
// an earlier secret that was not confirmed; a confirmed factor stays valid. It returns
// errUserNotFound, errServiceUser or an error of authorizationError.
func (s *store) addPendingFactor(ctx context.Context, by caller, userID int64, sealed []byte, now int64) error {
	err := s.write(ctx, statement{
		Query: `
			INSERT INTO user_totp_pending (user_id, secret, created_at)
			SELECT id, @secret, @now FROM user WHERE id = @id AND service = 0 AND ` + mayChange + `
			ON CONFLICT (user_id) DO UPDATE SET secret = excluded.secret, created_at = excluded.created_at`,
		Args:   by.with(args{{"id", userID}, {"secret", sealed}, {"now", now}}),
		IfNone: errNotApplied,
	})
	if !errors.Is(err, errNotApplied) {
		return err
	}
	_, missing := s.user(userID)
	return cmp.Or[error](s.authorizationError(by, userID), missing, errServiceUser)
}

// pendingSecret returns the secret that addPendingFactor has stored, and when, in Unix seconds; or
// errNoPendingFactor.
func (s *store) pendingSecret(userID int64) (sealed []byte, createdAt int64, err error) {
	err = s.read(`SELECT secret, created_at FROM user_totp_pending WHERE user_id = ?`, errNoPendingFactor, []any{&sealed, &createdAt}, userID)
	return sealed, createdAt, err
}

// A confirmation holds the values with which addFactor confirms a pending factor.
type confirmation struct {
	userID  int64
	pending []byte   // the sealed secret in user_totp_pending
	sealed  []byte   // the same secret, sealed for user_totp
	step    int64    // of the code that confirmed it
	codes   [][]byte // the hashes of the new recovery codes
}

// addFactor confirms a pending factor for a caller. It replaces the user's earlier factor and
// recovery codes, and ends the user's sessions except the caller's, which has now proven the
// factor. In that session, only the access token of the caller stays valid. The statements in
// before belong to the same write. addFactor returns errNoPendingFactor if another request
// confirmed or replaced the pending factor, or an error of authorizationError.
func (s *store) addFactor(ctx context.Context, by caller, c *confirmation, now int64, before ...statement) error {
	values := by.with(args{
		{"id", c.userID}, {"pending", c.pending}, {"secret", c.sealed}, {"step", c.step}, {"now", now},
	})
	statements := []statement{
		{
			Query:  `DELETE FROM user_totp_pending WHERE user_id = @id AND secret = @pending AND ` + mayChange,
			Args:   values,
			IfNone: errNotApplied,
		},
		{
			Query: `
				INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) VALUES (@id, @secret, @now, @step)
				ON CONFLICT (user_id) DO UPDATE SET
					secret = excluded.secret,
					confirmed_at = excluded.confirmed_at,
					last_step = excluded.last_step,
					failures = 0`,
			Args: values,
		},
		{Query: `DELETE FROM session WHERE user_id = @id AND id <> @session`, Args: values},
		// Other access tokens of the session may belong to a thief, and did not prove the factor.
		{Query: `UPDATE session SET factor = 1, rekeyed_at = generation + 1, kept_jti = @jti WHERE user_id = @id`, Args: values},
	}
	statements = append(statements, replaceCodes(values, c.codes)...)
	statements = append(statements, before...)
	statements = append(statements, event{at: now, kind: factorAdded, userID: c.userID}.by(by))
	err := s.write(ctx, statements...)
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, c.userID), errNoPendingFactor)
	}
	return err
}

// replaceCodes returns the statements that replace the recovery codes of the user @id. They
// change auth_stamp, so logins and proofs that began earlier fail.
func replaceCodes(values args, hashes [][]byte) []statement {
	statements := []statement{
		{Query: `UPDATE user SET auth_stamp = auth_stamp + 1 WHERE id = @id`, Args: values},
		{Query: `DELETE FROM user_recovery_code WHERE user_id = @id`, Args: values},
	}
	for _, hash := range hashes {
		statements = append(statements, statement{
			Query: `INSERT INTO user_recovery_code (hash, user_id) VALUES (@hash, @id)`,
			Args:  append(args{{"hash", hash}}, values...),
		})
	}
	return statements
}

// renewCodes replaces the recovery codes of a user for a caller. The statements in before belong
// to the same write. It returns errNoFactor or an error of authorizationError.
func (s *store) renewCodes(ctx context.Context, by caller, userID int64, hashes [][]byte, now int64, before ...statement) error {
	values := by.with(args{{"id", userID}})
	statements := append([]statement{{
		Query:  `UPDATE user_totp SET user_id = user_id WHERE user_id = @id AND ` + mayChange,
		Args:   values,
		IfNone: errNotApplied,
	}}, replaceCodes(values, hashes)...)
	statements = append(statements, before...)
	statements = append(statements, event{at: now, kind: codesRenewed, userID: userID}.by(by))
	return s.orNoFactor(s.write(ctx, statements...), by, userID)
}

// removeFactor removes the factor of a user, its recovery codes, and a factor that is not
// confirmed, for a caller. The user's sessions go on, but no longer count as proven by the
// factor. The statements in before belong to the same write. It returns errNoFactor or an error of
// authorizationError.
func (s *store) removeFactor(ctx context.Context, by caller, userID, now int64, before ...statement) error {
	values := by.with(args{{"id", userID}})
	statements := append([]statement{
		{Query: `DELETE FROM user_totp WHERE user_id = @id AND ` + mayChange, Args: values, IfNone: errNotApplied},
		{Query: endPendingFactor, Args: values},
		{Query: `UPDATE session SET factor = 0 WHERE user_id = @id`, Args: values},
	}, replaceCodes(values, nil)...)
	statements = append(statements, before...)
	statements = append(statements, event{at: now, kind: factorRemoved, userID: userID}.by(by))
	return s.orNoFactor(s.write(ctx, statements...), by, userID)
}

// orNoFactor returns err or, if that is errNotApplied, the reason: errNoFactor or an error of
// authorizationError.
func (s *store) orNoFactor(err error, by caller, userID int64) error {
	if !errors.Is(err, errNotApplied) {
		return err
	}
	return cmp.Or[error](s.authorizationError(by, userID), errNoFactor)
}

// recordLock records that the factor of a user now accepts only a recovery code. The statements
// in notice belong to the same write.
func (s *store) recordLock(ctx context.Context, userID int64, address string, now int64, notice ...statement) error {
	return s.write(ctx, append(notice, event{at: now, kind: factorLocked, userID: userID, address: address}.statement())...)
}

// dataSecret is the name of the key in the table secret that seals without DATA_KEY.
const dataSecret = "data"

// dataKey returns the key that seals without DATA_KEY, or nil if the database has none.
func (s *store) dataKey() (key []byte, err error) {
	err = s.read(`SELECT value FROM secret WHERE name = ?`, nil, []any{&key}, dataSecret)
	return key, err
}

// sealKeys calls f for each key that has sealed the secret of a factor, with the name of the key,
// the number of its users, and the id of the first of them.
func (s *store) sealKeys(ctx context.Context, f func(id []byte, users, first int64)) error {
	var id []byte
	var users, first int64
	return s.eachRow(ctx, selectSealKeys, []any{&id, &users, &first}, func() { f(id, users, first) })
}

const selectSealKeys = `SELECT substr(secret, 1, 8), count(*), min(user_id) FROM user_totp GROUP BY 1`

// resealBatch is how many secrets one write of reseal replaces.
const resealBatch = 500

// reseal seals each secret again that another key than the current one of the ring sealed. It
// returns how many it sealed, and how many it skipped because the ring cannot open them. If
// it sealed any, it deletes the factors that are not confirmed: their users must begin again.
func (s *store) reseal(ctx context.Context, ring *seal.Ring, now int64) (sealed, unreadable int, err error) {
	for after := int64(0); ; {
		var id int64
		var old []byte
		var batch []statement
		n := 0
		err := s.eachRow(ctx, `SELECT user_id, secret FROM user_totp WHERE user_id > ?1 ORDER BY user_id LIMIT ?2`,
			[]any{&id, &old}, func() {
				n++
				after = id
				if ring.Current(old) {
					return
				}
				secret, err := ring.Open(old, sealName(id))
				if err != nil {
					unreadable++
					return
				}
				batch = append(batch, statement{
					Query: `UPDATE user_totp SET secret = @new WHERE user_id = @id AND secret = @old`,
					Args:  args{{"id", id}, {"new", ring.Seal(secret, sealName(id))}, {"old", old}},
				})
			}, after, resealBatch)
		if err == nil && len(batch) > 0 {
			sealed += len(batch)
			err = s.write(ctx, batch...)
		}
		if err != nil {
			return sealed, unreadable, err
		}
		if n < resealBatch {
			break
		}
	}
	if sealed == 0 {
		return 0, unreadable, nil
	}
	return sealed, unreadable, s.write(ctx,
		statement{Query: `DELETE FROM user_totp_pending`},
		event{at: now, kind: keyRotated, changes: "secret=" + dataSecret}.by(console))
}

// insertFactors adds the second factors of the rows of the temporary table import, whose
// users the same transaction has added.
func insertFactors(ctx context.Context, tx *sql.Tx, ring *seal.Ring, now int64) error {
	// The lock of the database is held, so the rows must not cost more than SQLite's work: a
	// statement that is prepared once, and a context for which the driver starts no goroutine.
	insert, err := tx.PrepareContext(ctx, `INSERT INTO user_totp (user_id, secret, confirmed_at, last_step) VALUES (?, ?, ?, 0)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	secrets := make(map[int64]string) // by user
	var id int64
	var text string
	err = sqlitefile.Scan(ctx, tx, `
		SELECT user.id, import.totp FROM import JOIN user ON user.username = import.username COLLATE NOCASE
		WHERE import.totp <> ''`,
		[]any{&id, &text}, func() { secrets[id] = text })
	for id, text := range secrets {
		var secret []byte
		if err == nil {
			secret, err = otp.ParseSecret(text)
		}
		if err == nil {
			_, err = insert.Exec(id, ring.Seal(secret, sealName(id)), now)
		}
	}
	return err
}

// sealName is the name under which the secret of a user's factor is sealed: its user and
// its column. pendingSealName is that of a factor that is not confirmed.
func sealName(userID int64) string        { return fmt.Sprintf("user_totp.secret:%d", userID) }
func pendingSealName(userID int64) string { return fmt.Sprintf("user_totp_pending.secret:%d", userID) }
