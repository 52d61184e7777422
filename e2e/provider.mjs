// A certified OpenID provider (https://github.com/panva/node-oidc-provider), set up as the bank is: HS256 ID tokens, one
// secret method a client, rotation that ends the whole grant on reuse, the bank's paths. It prints its origin.
//
//   node provider.mjs '{"client": {…}, "lifetime": 2}'
import { createServer } from 'node:http'
import { Provider } from 'oidc-provider'

const { client, lifetime, pkce } = JSON.parse(process.argv[2])
const base = '/ganb/api/auth/v1'
const server = createServer().listen(0, '127.0.0.1', () => {
  const origin = `http://127.0.0.1:${server.address().port}`
  const provider = new Provider(origin + '/', {
    clients: [{
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      id_token_signed_response_alg: 'HS256',
      ...client,
    }],
    enabledJWA: { idTokenSigningAlgValues: ['HS256', 'RS256'] },
    scopes: ['openid', 'offline_access', 'private:account', 'private:transfer'],
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    rotateRefreshToken: true,
    pkce: { required: () => pkce },
    ttl: { AccessToken: lifetime, IdToken: 300, RefreshToken: 3600, Grant: 3600, Session: 3600, Interaction: 600 },
    cookies: { keys: ['a key'] },
    routes: { authorization: base + '/authorization', token: base + '/token', userinfo: base + '/userinfo' },
    features: { devInteractions: { enabled: true } },
  })
  // The provider takes either secret method; the bank takes the one that the client is registered for.
  provider.use(async (ctx, next) => {
    const basic = client.token_endpoint_auth_method === 'client_secret_basic'
    if (ctx.path === base + '/token' && basic !== Boolean(ctx.headers.authorization)) {
      ctx.status = 401
      ctx.body = { error: 'invalid_client' }
      return
    }
    await next()
  })
  provider.on('server_error', (_, error) => console.error(error))
  server.on('request', provider.callback())
  console.log(origin)
})
