package mysqlstore

var PageSQL = pageSQL
