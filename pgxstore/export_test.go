package pgxstore

const PageSQL = pageSQL
