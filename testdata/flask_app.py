"""The tutorial's models and registration, in one file, to write a database as
its app does: python3 flask_app.py DIRECTORY [many N | again], which then holds
app.db.

The tutorial's ids, hashes and table come from Flask-SQLAlchemy and Werkzeug
themselves; a posts table with a cascade stands for what an app adds.
"""
import hashlib
import os
import sys

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import check_password_hash, generate_password_hash

directory = os.path.abspath(sys.argv[1])
app = Flask(__name__, instance_path=directory)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///app.db"
db = SQLAlchemy(app)


class User(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    username = db.Column(db.String(80), unique=True, nullable=False)
    email = db.Column(db.String(120), unique=True, nullable=False)
    password_hash = db.Column(db.String(128), nullable=False)

    def set_password(self, password, method):
        if method == "scrypt":  # Werkzeug's default since 2.3; Debian 12 has 2.2
            salt = os.urandom(8).hex()
            key = hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**15, r=8, p=1, maxmem=2**26)
            self.password_hash = f"scrypt:32768:8:1${salt}${key.hex()}"
        else:
            self.password_hash = generate_password_hash(password, method=method)

    def check_password(self, password):
        return check_password_hash(self.password_hash, password)


class Post(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    user_id = db.Column(db.Integer, db.ForeignKey("user.id", ondelete="CASCADE"), nullable=False)
    text = db.Column(db.String(200))


@app.route("/api/register", methods=["POST"])
def register():
    data = request.get_json()
    if User.query.filter_by(username=data["username"]).first():
        return jsonify({"error": "Username already exists"}), 400
    user = User(username=data["username"], email=data["email"])
    user.set_password(data["password"], data.get("method", "pbkdf2:sha256"))
    db.session.add(user)
    db.session.commit()
    return jsonify({"id": user.id, "username": user.username, "email": user.email}), 201


@app.route("/api/check", methods=["POST"])
def check():
    data = request.get_json()
    user = User.query.filter_by(username=data["username"]).first()
    return jsonify(bool(user and user.check_password(data["password"])))


def post(path, **data):
    response = app.test_client().post(path, json=data)
    assert response.status_code < 300, (data, response.get_data())
    return response.get_json()


if __name__ == "__main__":
    with app.app_context():
        db.create_all()
        if sys.argv[2:] == ["again"]:  # the app goes on with the file that userd upgraded
            assert post("/api/check", username="ann", password="short"), "ann's password is not right any more"
            post("/api/register", username="late", email="late@example.com", password="correct horse battery")
            sys.exit()
        post("/api/register", username="ann", email="ann@example.com", password="short", method="pbkdf2:sha256:1000")
        post("/api/register", username="Bob Müller", email="not an address", password="correct horse battery", method="scrypt")
        post("/api/register", username="carol", email="carol@example.com", password="correct horse battery", method="pbkdf2:sha1:1000")
        post("/api/register", username="ann@example.com", email="dave@example.com", password="another long one", method="pbkdf2:sha512:1000")
        post("/api/register", username="gone", email="gone@example.com", password="correct horse battery", method="pbkdf2:sha256:1000")
        db.session.delete(User.query.filter_by(username="carol").one())
        db.session.add(Post(user_id=1, text="hello"))
        if sys.argv[2:3] == ["many"]:
            password_hash = generate_password_hash("correct horse battery", method="pbkdf2:sha256:1000")
            db.session.bulk_insert_mappings(
                User,
                [
                    {"username": f"user{i}", "email": f"user{i}@example.com", "password_hash": password_hash}
                    for i in range(int(sys.argv[3]))
                ],
            )
        db.session.commit()
