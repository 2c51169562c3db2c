"""A few rows in C++, where numpy takes a dozen calls for each of which it needs longer than for the numbers.

Statistics are the same bits as numpy's. Products of a network differ in their last bits, as they sum in another order.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import chain
from operator import is_
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

SOURCE = r"""
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>
#include <ATen/dlpack.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

static DLPackDLTensorFromPyObjectNoSync look_at;  // at a tensor; null where torch has no such function

// The numbers of an argument: an array of floats or doubles in order, in one piece; else there are none.
template <typename T>
struct Numbers {
    T* data = nullptr;
    int64_t size = 0;
    PyArrayObject* array;
    explicit Numbers(PyObject* object) : array(reinterpret_cast<PyArrayObject*>(object)) {
        if (Py_TYPE(object) != &PyArray_Type || !PyArray_ISCARRAY_RO(array)) return;
        if (PyArray_TYPE(array) != (sizeof(T) == 4 ? NPY_FLOAT : NPY_DOUBLE)) return;
        data = static_cast<T*>(PyArray_DATA(array)), size = PyArray_SIZE(array);
    }
    // Whether this is rows of one entry at least, each in the shape of another array.
    template <typename U>
    bool is_rows_of(const Numbers<U>& other) const {
        return data && other.size && PyArray_NDIM(array) == PyArray_NDIM(other.array) + 1
            && PyArray_CompareLists(PyArray_DIMS(array) + 1, PyArray_DIMS(other.array), PyArray_NDIM(other.array));
    }
};
using Floats = Numbers<float>;
using Doubles = Numbers<double>;

static PyObject* answer(bool yes) { return PyBool_FromLong(yes); }

// same(parts, objects): whether these are the values of dicts, and the items of lists, one after another.
static PyObject* same(PyObject*, PyObject* const* args, Py_ssize_t) {
    PyObject *parts = args[0], *objects = args[1], *value;
    const Py_ssize_t count = PyList_GET_SIZE(objects);
    PyObject** expected = PySequence_Fast_ITEMS(objects);
    Py_ssize_t seen = 0;
    auto differs = [&](PyObject* value) { return seen == count || expected[seen++] != value; };
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parts); ++i) {
        PyObject* part = PyList_GET_ITEM(parts, i);
        Py_ssize_t at = 0;
        if (PyList_Check(part)) {
            for (; at < PyList_GET_SIZE(part); ++at)
                if (differs(PyList_GET_ITEM(part, at))) return answer(false);
        } else {
            while (PyDict_Next(part, &at, nullptr, &value))
                if (differs(value)) return answer(false);
        }
    }
    return answer(seen == count);
}

// places(tensors): address, shape and strides of each, as bytes; None where a tensor does not tell.
static PyObject* places(PyObject*, PyObject* const* args, Py_ssize_t) {
    static thread_local std::vector<int64_t> found;
    found.clear();
    for (Py_ssize_t i = 0; look_at && i < PyList_GET_SIZE(args[0]); ++i) {
        DLTensor tensor;
        if (look_at(PyList_GET_ITEM(args[0], i), &tensor) || !tensor.data) {
            PyErr_Clear();
            Py_RETURN_NONE;
        }
        found.push_back(reinterpret_cast<int64_t>(tensor.data) + tensor.byte_offset);
        found.insert(found.end(), tensor.shape, tensor.shape + tensor.ndim);
        found.insert(found.end(), tensor.strides, tensor.strides + tensor.ndim);
    }
    if (!look_at) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(reinterpret_cast<char*>(found.data()), found.size() * sizeof(int64_t));
}

// store(targets, values, time): targets[name][time] = values[name] for all arrays, where types and shapes fit for each.
static PyObject* store(PyObject*, PyObject* const* args, Py_ssize_t) {
    const Py_ssize_t time = PyLong_AsSsize_t(args[2]);
    for (bool writes : {false, true}) {
        PyObject *name, *target;
        Py_ssize_t at = 0;
        while (PyDict_Next(args[0], &at, &name, &target)) {
            PyObject* value = PyDict_GetItem(args[1], name);
            if (!value || Py_TYPE(target) != &PyArray_Type || Py_TYPE(value) != &PyArray_Type) return answer(false);
            auto *to = reinterpret_cast<PyArrayObject*>(target), *from = reinterpret_cast<PyArrayObject*>(value);
            const npy_intp size = PyArray_NBYTES(from);
            if (writes) {
                std::memcpy(PyArray_BYTES(to) + time * size, PyArray_BYTES(from), size);
                continue;
            }
            const int dims = PyArray_NDIM(from);
            if (PyArray_TYPE(to) != PyArray_TYPE(from) || PyTypeNum_ISOBJECT(PyArray_TYPE(to))
                || PyArray_NDIM(to) != dims + 1 || time < 0 || time >= PyArray_DIM(to, 0)
                || !PyArray_ISCARRAY(to) || !PyArray_ISCARRAY_RO(from)) return answer(false);
            for (int i = 0; i < dims; ++i)
                if (PyArray_DIM(to, i + 1) != PyArray_DIM(from, i)) return answer(false);
        }
    }
    return answer(true);
}

// tanh as a quotient of polynomials, good to some last bits: Eigen's, Eigen/src/Core/MathFunctionsImpl.h.
static inline float tanh_of(float x) {
    x = x > 7.90531110763549805f ? 7.90531110763549805f : x;
    x = x < -7.90531110763549805f ? -7.90531110763549805f : x;
    const float s = x * x;
    const float p = ((((((-2.76076847742355e-16f * s + 2.00018790482477e-13f) * s - 8.60467152213735e-11f) * s
        + 5.12229709037114e-08f) * s + 1.48572235717979e-05f) * s + 6.37261928875436e-04f) * s + 4.89352455891786e-03f);
    const float q = ((1.19825839466702e-06f * s + 1.18534705686654e-04f) * s + 2.26843463243900e-03f) * s
        + 4.89352518554385e-03f;
    return x * p / q;
}

enum Kind { LINEAR, IDENTITY, RELU, LEAKY_RELU, TANH, LAYER_NORM, RMS_NORM };  // as in COMPILED_LAYERS
struct Layer { int64_t kind, weight, bias, inputs, outputs; double number; };  // as in `program`

static void multiply(const Layer& layer, const float* x, float* y) {
    const float *w = reinterpret_cast<float*>(layer.weight), *b = reinterpret_cast<float*>(layer.bias);
    const int64_t inputs = layer.inputs;
    for (int64_t o = 0; o < layer.outputs; ++o, w += inputs) {
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < inputs; ++i) sum += x[i] * w[i];
        y[o] = sum + b[o];
    }
}

static void normalise(const Layer& layer, const float* x, float* y) {
    const float *w = reinterpret_cast<float*>(layer.weight), *b = reinterpret_cast<float*>(layer.bias);
    const int64_t n = layer.outputs;
    float mean = 0, square = 0;
    if (layer.kind == LAYER_NORM) {
        #pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < n; ++i) mean += x[i];
        mean /= n;
    }
    #pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(square / n + float(layer.number));
    #pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale;
    for (int64_t i = 0; w && i < n; ++i) y[i] *= w[i];
    for (int64_t i = 0; b && i < n; ++i) y[i] += b[i];
}

static void run(const Layer& layer, const float* x, float* y) {
    const int64_t n = layer.outputs;
    const float slope = layer.number;
    switch (layer.kind) {
        case LINEAR: return multiply(layer, x, y);
        case LAYER_NORM: case RMS_NORM: return normalise(layer, x, y);
        case IDENTITY: std::memcpy(y, x, n * sizeof(float)); return;
        case RELU:
            #pragma omp simd
            for (int64_t i = 0; i < n; ++i) y[i] = x[i] < 0 ? 0 : x[i];
            return;
        case LEAKY_RELU:
            #pragma omp simd
            for (int64_t i = 0; i < n; ++i) y[i] = x[i] < 0 ? x[i] * slope : x[i];
            return;
        case TANH:
            #pragma omp simd
            for (int64_t i = 0; i < n; ++i) y[i] = tanh_of(x[i]);
    }
}

// forward(program, heads, x): the outputs, a list of arrays (n, outputs), of rows x (n, inputs) that go through the
// layers; the last `heads` layers all take what is before them. None where x is no array of that width in one piece.
static PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t) {
    const auto* layers = reinterpret_cast<const Layer*>(PyBytes_AS_STRING(args[0]));
    const int64_t count = PyBytes_GET_SIZE(args[0]) / sizeof(Layer), trunk = count - PyLong_AsLong(args[1]);
    Floats in(args[2]);
    if (!in.data || PyArray_NDIM(in.array) != 2 || PyArray_DIM(in.array, 1) != layers[0].inputs) Py_RETURN_NONE;
    PyObject* found = PyList_New(0);
    std::vector<float*> outputs;
    for (int64_t i = trunk; i < count; ++i) {
        npy_intp shape[] = {PyArray_DIM(in.array, 0), layers[i].outputs};
        PyObject* one = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
        if (!one || PyList_Append(found, one)) return nullptr;
        outputs.push_back(static_cast<float*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(one))));
        Py_DECREF(one);
    }
    static thread_local std::vector<float> scratch[2];
    for (int64_t row = 0; row < PyArray_DIM(in.array, 0); ++row) {
        const float* seen = in.data + row * layers[0].inputs;
        for (int64_t i = 0; i < trunk; ++i) {
            auto& next = scratch[i % 2];
            if (next.size() < size_t(layers[i].outputs)) next.resize(layers[i].outputs);
            run(layers[i], seen, next.data());
            seen = next.data();
        }
        for (int64_t i = trunk; i < count; ++i) {
            run(layers[i], seen, outputs[i - trunk]);
            outputs[i - trunk] += layers[i].outputs;
        }
    }
    return found;
}

// take_in(mean, var, count, x): Chan, Golub & LeVeque for rows x (n, *shape of mean), as in normalise.py.
static PyObject* take_in(PyObject*, PyObject* const* args, Py_ssize_t) {
    Doubles mean_(args[0]), var_(args[1]), count(args[2]);
    Floats x(args[3]);
    if (!mean_.data || var_.size != mean_.size || !count.size || !x.is_rows_of(mean_)) return answer(false);
    double *mean = mean_.data, *var = var_.data;
    const int64_t width = mean_.size, rows = x.size / width;
    const double total = *count.data += rows, share = rows / total;
    for (int64_t i = 0; i < width; ++i) {
        if (rows == 1) {  // its mean is itself, and its variance 0
            const double delta = x.data[i] - mean[i], moved = delta * share;
            mean[i] += moved;
            var[i] = (var[i] + moved * delta) * (1 - share);
            continue;
        }
        double centre = 0, spread = 0;
        for (int64_t row = 0; row < rows; ++row) centre += x.data[row * width + i];
        centre /= rows;
        for (int64_t row = 0; row < rows; ++row) {
            const double off = x.data[row * width + i] - centre;
            spread += off * off;
        }
        spread /= rows;
        const double delta = centre - mean[i];
        mean[i] += delta * share;
        var[i] += share * (spread - var[i] + delta * delta * (1 - share));
    }
    return answer(true);
}

// standardise(mean, var, x, y, eps, bound): rows y of x, as in normalise.py.
static PyObject* standardise(PyObject*, PyObject* const* args, Py_ssize_t) {
    Doubles mean(args[0]), var(args[1]);
    Floats in(args[2]), out(args[3]);
    if (!mean.data || var.size != mean.size || !in.is_rows_of(mean) || out.size != in.size) return answer(false);
    const double eps = PyFloat_AsDouble(args[4]), bound = PyFloat_AsDouble(args[5]);
    for (int64_t i = 0; i < mean.size; ++i) {
        const double root = std::sqrt(var.data[i] + eps);
        for (int64_t at = i; at < in.size; at += mean.size) {
            double value = (in.data[at] - mean.data[i]) / root;
            value = value > bound ? bound : value;
            out.data[at] = value < -bound ? -bound : value;
        }
    }
    return answer(true);
}

// scale(returns, mean, var, count, reward, out, ended, gamma, eps, bound): the reward of one environment; rewards.py.
static PyObject* scale(PyObject*, PyObject* const* args, Py_ssize_t) {
    Doubles returns(args[0]), mean(args[1]), var(args[2]), count(args[3]);
    Floats in(args[4]), out(args[5]);
    for (int64_t size : {returns.size, mean.size, var.size, count.size, in.size, out.size})
        if (size != 1) return answer(false);
    const double gamma = PyFloat_AsDouble(args[7]), eps = PyFloat_AsDouble(args[8]), bound = PyFloat_AsDouble(args[9]);
    const double given = *in.data, so_far = *returns.data * gamma + given;
    const double total = *count.data += 1, share = 1 / total, delta = so_far - *mean.data;
    *mean.data += delta * share;
    *var.data = (*var.data + delta * delta * share) * (1 - share);
    *returns.data = PyObject_IsTrue(args[6]) ? 0.0 : so_far;
    const double scaled = given / std::sqrt(*var.data + eps);
    *out.data = scaled > bound ? bound : scaled < -bound ? -bound : scaled;
    return answer(true);
}

// sample(mean, log_std, noise, sample, action): of Gaussians; actions are samples within [-1, 1].
static PyObject* sample(PyObject*, PyObject* const* args, Py_ssize_t) {
    Floats mean(args[0]), log_std(args[1]), noise(args[2]), sample(args[3]), action(args[4]);
    if (!mean.is_rows_of(log_std)) return answer(false);
    for (const Floats& other : {noise, sample, action})
        if (!other.data || !PyArray_SAMESHAPE(mean.array, other.array)) return answer(false);
    for (int64_t i = 0; i < mean.size; ++i) {
        const float value = mean.data[i] + std::exp(log_std.data[i % log_std.size]) * noise.data[i];
        sample.data[i] = value;
        action.data[i] = value > 1 ? 1 : value < -1 ? -1 : value;
    }
    return answer(true);
}

static PyMethodDef methods[] = {
    {"scale", reinterpret_cast<PyCFunction>(scale), METH_FASTCALL, ""},
    {"sample", reinterpret_cast<PyCFunction>(sample), METH_FASTCALL, ""},
    {"store", reinterpret_cast<PyCFunction>(store), METH_FASTCALL, ""},
    {"same", reinterpret_cast<PyCFunction>(same), METH_FASTCALL, ""},
    {"places", reinterpret_cast<PyCFunction>(places), METH_FASTCALL, ""},
    {"forward", reinterpret_cast<PyCFunction>(forward), METH_FASTCALL, ""},
    {"take_in", reinterpret_cast<PyCFunction>(take_in), METH_FASTCALL, ""},
    {"standardise", reinterpret_cast<PyCFunction>(standardise), METH_FASTCALL, ""},
    {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "rows", nullptr, -1, methods};

PyMODINIT_FUNC PyInit_rows() {
    import_array();
    PyObject* module = PyImport_ImportModule("torch");
    PyObject* kind = module ? PyObject_GetAttrString(module, "Tensor") : nullptr;
    PyObject* capsule = kind ? PyObject_GetAttrString(kind, "__dlpack_c_exchange_api__") : nullptr;
    auto* api = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    if (api) look_at = reinterpret_cast<DLPackExchangeAPI*>(api)->dltensor_from_py_object_no_sync;
    PyErr_Clear();
    Py_XDECREF(capsule), Py_XDECREF(kind), Py_XDECREF(module);
    return PyModule_Create(&definition);
}
"""


COMPILED_LAYERS = nn.Linear, nn.Identity, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.LayerNorm, nn.RMSNorm
"""Layers that `forward` knows, by their number."""

loaded: Any = None
"""The compiled functions, once they were asked for; None before, and where they cannot be compiled."""


def values_are(parts: list[Any], objects: list[Any]) -> bool:
    """Return whether these objects are the values of dicts and the items of lists, one after another."""
    if loaded is not None:
        return loaded.same(parts, objects)
    present = items_of(parts)
    return len(present) == len(objects) and all(map(is_, present, objects))


def items_of(parts: list[Any]) -> list[Any]:
    """Return the values of dicts and the items of lists, one after another."""
    return [*chain.from_iterable([dict.values(part) if isinstance(part, dict) else part for part in parts])]


def places_of(tensors: list[Tensor]) -> bytes:
    """Return where tensors lie in memory, their shapes and strides: to be compared with what was returned before."""
    found = None if loaded is None else loaded.places(tensors)
    if found is None:  # the same bytes: what is compared may have been asked for before there was compiled code
        numbers = chain.from_iterable((one.data_ptr(), *one.size(), *one.stride()) for one in tensors)
        return np.fromiter(numbers, np.int64).tobytes()
    return found


@cache
def available() -> bool:
    """Return whether there are compiled functions, and load them; the first time may take seconds."""
    global loaded
    try:
        from torch._inductor.codecache import CppPythonBindingsCodeCache

        class Rows(CppPythonBindingsCodeCache):
            cache: ClassVar[dict] = {}
            entry_function = "rows"

        loaded = Rows.load(SOURCE, extra_flags=(f"-I{np.get_include()}", "-ftree-loop-vectorize"))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"going on with numpy for single steps: {reason}", RuntimeWarning, stacklevel=2)
    return loaded is not None
