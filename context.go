package ganbauth

import (
	"context"
	"time"
)

// TokenFromContext returns the token that [Kit.RequireToken] found, without its refresh
// token. Where several kits guard a route, it is the innermost kit's. Each call in one
// request returns the same Token, which the handler must not change. The bool is false
// outside RequireToken.
func TokenFromContext(ctx context.Context) (*Token, bool) {
	g := innermost(ctx)
	if g == nil || !g.served() || g.movedOn() {
		return nil, false
	}
	return &g.token, true
}

// KeyFromContext says whose connection a context is about: key and connection are what
// [Kit.Token] and the other methods for jobs take. It works behind [Kit.RequireToken], in
// [Options.Observe] and in [Options.OnError]. Where tokens belong to sessions, key is a
// random name that stands for the session. The bool is false for any other context, and
// where no user is known.
func KeyFromContext(ctx context.Context) (key, connection string, ok bool) {
	g := innermost(ctx)
	if g == nil || g.storeKey == "" {
		return "", "", false
	}
	return g.key, g.connection, true
}

// grant is what a context carries: whose connection it is about and, behind RequireToken,
// the token.
type grant struct {
	outer *grant // of another kit
	kit   any    // tells the kits apart
	owner
	token Token     // a copy: the store may still have its own
	found time.Time // when the store had the token
	needs []string  // the scopes of the route

	// connectionNow returns which connection the request names by now. A mux that stands
	// behind RequireToken sets the path values that Options.Connection may read, and then
	// the token is of the wrong one. Nil if there is one connection.
	connectionNow func() (string, error)
}

// movedOn reports whether the request names another connection than RequireToken has seen.
func (g *grant) movedOn() bool {
	if g.connectionNow == nil {
		return false
	}
	connection, err := g.connectionNow()
	return err != nil || connection != g.connection
}

// served reports whether the grant is of a request behind RequireToken.
func (g *grant) served() bool { return g.token.AccessToken != "" }

// owner says whose token a record is, and under which key the store has it.
type owner struct{ key, connection, storeKey string }

type grantKey struct{}

// withGrant adds g to ctx.
func withGrant(ctx context.Context, g *grant) context.Context {
	g.outer = innermost(ctx)
	return context.WithValue(ctx, grantKey{}, g)
}

func innermost(ctx context.Context) *grant {
	g, _ := ctx.Value(grantKey{}).(*grant)
	return g
}

// grantOf returns the grant of one kit, or nil.
func grantOf(ctx context.Context, kit any) *grant {
	g := innermost(ctx)
	for g != nil && g.kit != kit {
		g = g.outer
	}
	return g
}
