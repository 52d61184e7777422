package ganbauth

import (
	"context"
)

// TokenFromContext returns the token that [Kit.RequireToken] found, without its refresh token; of several kits', the
// innermost's. Each call in one request returns the same Token. The bool is false outside RequireToken.
func TokenFromContext(ctx context.Context) (*Token, bool) {
	g, ok := ctx.Value(grantKey{}).(*grant)
	if !ok {
		return nil, false
	}
	return &g.token, true
}

// grant is the context of a request that RequireToken let through.
type grant struct {
	context.Context
	kit   *Kit
	key   string
	token Token
}

type grantKey struct{}

func (g *grant) Value(key any) any {
	if key == (grantKey{}) {
		return g
	}
	return g.Context.Value(key)
}

// grantOf finds k's grant, below those of other kits.
func (k *Kit) grantOf(ctx context.Context) *grant {
	for ctx != nil {
		g, ok := ctx.Value(grantKey{}).(*grant)
		if !ok {
			return nil
		}
		if g.kit == k {
			return g
		}
		ctx = g.Context
	}
	return nil
}
