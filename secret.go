package ganbauth

// secret is a string that fmt does not print, whatever the verb. A Format method would
// not do alone: fmt cannot call it in an unexported field of another struct, and then
// prints what it finds by reflection. It does not follow a pointer to a string.
type secret struct{ s *string }

func newSecret(s string) secret { return secret{&s} }

// reveal returns the string.
func (s secret) reveal() string {
	if s.s == nil {
		return ""
	}
	return *s.s
}
