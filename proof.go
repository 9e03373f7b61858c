package main

// requireProof returns nil if the caller proves that it is the user: with the
// password or, without one, with a token that a login made at most proofAge ago.
// A password is always checked. If the route requires no proof for these acts,
// none is needed. The write that follows checks again that the proof is still good
// (see mayChange). It returns errNotFresh, errWrongPassword, or an error of
// matchesPassword.
func (s *server) requireProof(x *exchange, acts proof, password *string) error {
	if password == nil {
		acts &= x.proof
		age := s.wall().Unix() - x.who.issued
		x.renewed = acts&renewedOnly != 0
		if acts == 0 || x.who.fresh && -clockLeeway <= age && age <= proofAge {
			return nil
		}
		return errNotFresh
	}
	c, err := s.store.credentials(x.who.id)
	if err != nil {
		return err
	}
	ok, err := s.matchesPassword(x, x.who.id, c.hash, "", *password)
	if err == nil && !ok {
		err = errWrongPassword
	}
	x.stamp = &c.stamp
	return err
}

// A proofRequest is the body of an act that needs no other member.
type proofRequest struct {
	CurrentPassword *string `json:"current_password"`
}

// actsOf returns the acts of a change of a user, with a new password unless that
// is nil.
func actsOf(c *change, password *string) (acts proof) {
	add := func(act proof, does bool) {
		if does {
			acts |= act
		}
	}
	add(changeUsername, c.username != nil)
	add(changeEmail, c.email != nil)
	add(changePassword, password != nil)
	add(changeRole, c.role != nil)
	add(changeDisabled, c.disabled != nil)
	return acts
}

// matchesPassword reports whether a password is that of the user with this id and
// hash. For an unknown name, id is 0 and hash is empty; the time is the same. Each
// verified password counts toward the limits. It returns errLimited, errStorage or
// passhash.ErrBusy.
func (s *server) matchesPassword(x *exchange, id int64, hash, name, password string) (bool, error) {
	g, err := s.newGuess(x, id, hash, name)
	if err != nil {
		return false, err
	}
	// After the limits above: a guess that they refuse costs no hash, so it must not
	// count for the other users of its network.
	if err := s.allow(x, passwords); err != nil {
		return false, err
	}
	ok, err := s.hasher.Verify(x.r.Context(), network(x.address), hash, password)
	if err != nil {
		return false, err
	}
	return ok, g.finish(ok)
}
