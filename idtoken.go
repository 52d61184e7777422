package ganbauth

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	maxIDToken    = 16 << 10         // bytes
	maxClockSkew  = 30 * time.Second // how far iat and nbf may be ahead of our clock
	maxIDTokenAge = 10 * time.Minute // as in the bank's Java SDK
	maxSubject    = 255              // characters, OpenID Connect Core section 2
)

// idClaims are the claims of an ID token that are checked.
type idClaims struct {
	Issuer, Subject, Nonce, AZP string
	Audience                    []string
	IssuedAt, AuthTime          int64
}

// noTime is the AuthTime of an ID token that has none.
var noTime = time.Time{}.Unix()

// gotWant describes two values that should have been the same.
func gotWant(what, got, want string) string {
	return fmt.Sprintf("%s is %q, want %q", what, printable(got), want)
}

func invalidIDToken(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidIDToken, fmt.Errorf(format, args...))
}

// idTokenVerifier verifies the ID tokens of one client at one bank.
type idTokenVerifier struct {
	issuer, clientID string
	clientSecret     secret
}

// verify checks what every ID token must hold, from a login or a refresh: OpenID Connect
// Core section 3.1.3.7 and RFC 8725, with HS256 only, keyed with the client secret.
// accessToken came in the same answer.
func (v idTokenVerifier) verify(raw, accessToken string, now time.Time) (*idClaims, error) {
	if raw == "" {
		return nil, fmt.Errorf("%w: id_token is missing", ErrTokenFormat)
	}
	payload, err := v.signedPayload(raw)
	if err != nil {
		return nil, err
	}
	o, err := parseObject(payload)
	if err != nil {
		return nil, invalidIDToken("claims: %w", err)
	}
	claims, err := readClaims(o)
	if err != nil {
		return nil, invalidIDToken("%w", err)
	}
	if v.issuer == "" || claims.Issuer != v.issuer {
		return nil, invalidIDToken("%s", gotWant("iss", claims.Issuer, v.issuer))
	}
	if len(claims.Audience) == 0 {
		return nil, invalidIDToken("aud is missing")
	}
	for _, aud := range claims.Audience {
		if aud != v.clientID {
			return nil, invalidIDToken("aud names another client")
		}
	}
	if _, ok := o["azp"]; ok && claims.AZP != v.clientID {
		return nil, invalidIDToken("azp is another client")
	}
	if n := len(claims.Subject); n == 0 || n > maxSubject || !isVisible(claims.Subject, true) {
		return nil, invalidIDToken("sub must be 1 to %d ASCII characters", maxSubject)
	}
	if err := checkTimes(o, now); err != nil {
		return nil, invalidIDToken("%w", err)
	}
	if hash, ok, _ := member[string](o, "at_hash"); ok && hash != accessTokenHash(accessToken) {
		return nil, invalidIDToken("at_hash is not the access token's")
	}
	return claims, nil
}

// signedPayload returns the payload of a compact JWS whose header and MAC are right. Only
// the MAC is golang-jwt's. Its parser is not used because it accepts crit and b64, any
// typ, duplicate names, line breaks, and several spellings of one signature.
func (v idTokenVerifier) signedPayload(raw string) ([]byte, error) {
	if len(raw) > maxIDToken {
		return nil, invalidIDToken("longer than %d bytes", maxIDToken)
	}
	if strings.Count(raw, ".") != 2 {
		return nil, invalidIDToken("not a compact JWS")
	}
	signed, signature := raw[:strings.LastIndexByte(raw, '.')], raw[strings.LastIndexByte(raw, '.')+1:]
	header64, payload64, _ := strings.Cut(signed, ".")
	header, err1 := decodeSegment(header64)
	payload, err2 := decodeSegment(payload64)
	mac, err3 := decodeSegment(signature)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, invalidIDToken("not base64url")
	}
	h, err := parseObject(header)
	if err != nil {
		return nil, invalidIDToken("header: %w", err)
	}
	if alg, _, _ := member[string](h, "alg"); alg != jwt.SigningMethodHS256.Alg() {
		return nil, invalidIDToken("alg is not HS256")
	}
	if typ, ok, _ := member[string](h, "typ"); ok && strings.TrimPrefix(strings.ToLower(typ), "application/") != "jwt" {
		return nil, invalidIDToken("typ is not JWT")
	}
	for _, name := range []string{"crit", "b64"} {
		if _, ok := h[name]; ok {
			return nil, invalidIDToken("header has %s", name)
		}
	}
	if err := jwt.SigningMethodHS256.Verify(signed, mac, []byte(v.clientSecret.reveal())); err != nil {
		return nil, invalidIDToken("wrong signature")
	}
	return payload, nil
}

// decodeSegment decodes base64url in its one canonical spelling. encoding/base64 would
// skip line breaks, even when it is strict.
func decodeSegment(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, base64.CorruptInputError(0)
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// readClaims reads the claims that are checked. It fails if one has the wrong type.
func readClaims(o object) (*idClaims, error) {
	var claims idClaims
	var errs []error
	for name, field := range map[string]*string{"iss": &claims.Issuer, "sub": &claims.Subject, "nonce": &claims.Nonce, "azp": &claims.AZP} {
		var err error
		*field, _, err = member[string](o, name)
		errs = append(errs, err)
	}
	if raw := o["aud"]; len(raw) > 0 && raw[0] == '[' {
		// A nil pointer is a null, which is not the empty string.
		list, _, err := member[[]*string](o, "aud")
		errs = append(errs, err)
		for _, aud := range list {
			if aud == nil {
				return nil, errors.New("aud has the wrong type")
			}
			claims.Audience = append(claims.Audience, *aud)
		}
	} else if aud, ok, err := member[string](o, "aud"); ok {
		claims.Audience, errs = []string{aud}, append(errs, err)
	}
	iat, _, err1 := numericDate(o, "iat")
	auth, _, err2 := numericDate(o, "auth_time")
	claims.IssuedAt, claims.AuthTime = iat.Unix(), auth.Unix()
	return &claims, errors.Join(append(errs, err1, err2)...)
}

// checkTimes checks exp, iat and nbf. Our clock may be maxClockSkew behind the bank's. An
// exp gets no such grace.
func checkTimes(o object, now time.Time) error {
	exp, hasExp, err1 := numericDate(o, "exp")
	iat, hasIat, err2 := numericDate(o, "iat")
	nbf, _, err3 := numericDate(o, "nbf")
	switch {
	case errors.Join(err1, err2, err3) != nil:
		return errors.Join(err1, err2, err3)
	case !hasExp || !hasIat:
		return errors.New("exp or iat is missing")
	case !now.Before(exp):
		return errors.New("expired")
	case iat.After(now.Add(maxClockSkew)) || nbf.After(now.Add(maxClockSkew)):
		return errors.New("not valid yet")
	case now.Sub(iat) > maxIDTokenAge:
		return fmt.Errorf("issued more than %s ago", maxIDTokenAge)
	}
	return nil
}

// numericDate reads a NumericDate (RFC 7519 section 2) of the years 1970 to 9999.
func numericDate(o object, name string) (time.Time, bool, error) {
	n, ok, err := member[json.Number](o, name)
	if !ok {
		return time.Time{}, ok, nil
	}
	if err != nil || o[name][0] == '"' { // json.Number accepts a string
		return time.Time{}, ok, fmt.Errorf("%s has the wrong type", name)
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > 253402300799 {
		return time.Time{}, ok, fmt.Errorf("%s is out of range", name)
	}
	seconds, fraction := math.Modf(f)
	return time.Unix(int64(seconds), int64(fraction*1e9)), ok, nil
}

// accessTokenHash is at_hash for HS256 (OpenID Connect Core section 3.1.3.6).
func accessTokenHash(accessToken string) string {
	sum := sha256.Sum256([]byte(accessToken))
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}

// checkLogin checks the nonce, which ties an ID token to one login.
func (claims *idClaims) checkLogin(nonce string) error {
	if nonce == "" || subtle.ConstantTimeCompare([]byte(claims.Nonce), []byte(nonce)) != 1 {
		return invalidIDToken("nonce is not this login's")
	}
	return nil
}

// readLogin reads the claims of a login's ID token. It does not verify the token, because
// the login did.
func readLogin(idToken string) (*idClaims, error) {
	parts := strings.Split(idToken, ".")
	if len(parts) != 3 {
		return nil, errors.New("not a compact JWS")
	}
	payload, err1 := decodeSegment(parts[1])
	o, err2 := parseObject(payload)
	claims, err3 := readClaims(o)
	return claims, errors.Join(err1, err2, err3)
}

// checkRefresh compares the claims of a refresh's ID token with the login's ID token
// (OpenID Connect Core section 12.2). The sub comes first, because the ID token of
// another user differs in the rest as well. The iss is compared with JWTIssuer only,
// which an operator may have had to change since the login. An auth_time is compared if both
// have one: a bank need not send it with each ID token.
func (claims *idClaims) checkRefresh(login string) error {
	first, err := readLogin(login)
	switch {
	case err != nil:
		return invalidIDToken("the login's cannot be read")
	case claims.Subject != first.Subject:
		return errOtherSubject
	case claims.AZP != first.AZP:
		return invalidIDToken("azp is not the login's")
	case claims.AuthTime != first.AuthTime && claims.AuthTime != noTime && first.AuthTime != noTime:
		return invalidIDToken("auth_time is not the login's")
	case claims.Nonce != "" && claims.Nonce != first.Nonce:
		return invalidIDToken("nonce is not the login's")
	case claims.IssuedAt < first.IssuedAt:
		return invalidIDToken("iat is before the login's")
	}
	return nil
}
